"""What an editing method is: one record each, in the method's own file."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.kept import Kept
from ..storage.files import read_json
from .calibrated import is_calibration, is_path, preset_of, stored_calibration
from .edit import Edit
from .hyperparameters import preset_name


@dataclass(frozen=True)
class Method:
    """One method of editing.

    name: on the command line and in saved edits; write: the editor, (model, tokenizer, request or
    requests, layer or layers, *, moments, context_templates, hyperparameters, seed, report) ->
    Edit; presets: name -> hyperparameters, the first are the published ones; templates: (model,
    tokenizer, seed, hyperparameters) -> the context templates that it samples where none are
    given; one_by_one: whether it writes one request per call; needs_moments: whether it needs C;
    equations: (hyperparameters, C) -> (what a layer's keys become its update with, details of it),
    for methods of many facts (see `spread`); protects: whether these are `LeastSquares`, which
    hold what was written before; memory: makes what the batches of a sequence share besides, given
    to `write` as `running`, with `arrays` and `restore`;
    elsewhere: changes to the published hyperparameters on models that have no preset; before_norm:
    on those of them in which a norm follows the MLP; in_a_row: (hyperparameters, width of the keys)
    -> those of a sequence of many edits.
    """

    name: str
    write: Callable[..., Edit]
    presets: Mapping[str, Any]
    templates: Callable[..., list[str]]
    one_by_one: bool = False
    needs_moments: bool = True
    equations: Callable[..., tuple[Any, dict]] | None = None
    protects: bool = False
    memory: Callable[[], Any] | None = None
    elsewhere: Mapping[str, Any] = field(default_factory=dict)
    before_norm: Mapping[str, Any] = field(default_factory=dict)
    in_a_row: Callable[[Any, int], Any] | None = None

    @property
    def published(self):
        """The hyperparameters of the method's authors."""
        return next(iter(self.presets.values()))

    def resolve(self, given=None, decoder: Decoder | None = None):
        """The hyperparameters from what a caller may give.

        Args:
            given: None for the model's own preset, "published", a preset's name, a JSON file, a
                dict of changes to the model's own, what `rome-mlx calibrate` wrote, or the
                method's dataclass.
            decoder: the model. Layers of a preset for another model are left out (None): they
                say nothing of this one.

        Raises RomeError, naming the choices.
        """
        published = self.published
        if isinstance(given, type(published)):
            return given
        if is_path(given):
            given = read_json(given)
        if is_calibration(given):
            return self._calibrated(given, decoder)
        own = self._own(decoder)
        if given is None:
            return own
        if isinstance(given, Mapping):
            return self._changed(own, given)
        if given == "published" or (isinstance(given, str) and given in self.presets):
            found = published if given == "published" else self.presets[given]
            words = f"published ({found.preset})" if given == "published" else found.preset
            ours = decoder is None or preset_name(decoder) == found.preset
            return dataclasses.replace(found if ours else self.unplaced(found), preset=words)
        raise RomeError(f"hyperparameters {given!r} of {self.name}: give 'published', a preset "
                        f"({', '.join(self.presets)}), a dictionary or a "
                        f"{type(published).__name__}")

    def resolve_in_a_row(self, given, decoder: Decoder):
        """As `resolve`; where nothing is given, the hyperparameters of a sequence."""
        own = self.resolve(given, decoder)
        if given is not None or self.in_a_row is None:
            return own
        return self.in_a_row(own, decoder.key_width)

    def kept_templates(self, model, tokenizer, seed: int, hyperparameters) -> list[str]:
        """The context templates that are sampled for the model as it is, kept in the cache."""
        about = {"sampler": self.templates.__qualname__, "seed": seed,
                 "lengths": getattr(hyperparameters, "context_lengths", None)}
        return Kept(model, tokenizer).get("templates", about, "The", lambda: self.templates(
            model, tokenizer, seed, hyperparameters))

    def layer_of(self, hyperparameters) -> int | None:
        """The layer that the hyperparameters name, of several the last; None where they name
        none."""
        layers = getattr(hyperparameters, "layers", None)
        return layers[-1] if layers else getattr(hyperparameters, "layer", None)

    def layers_up_to(self, layer: int, hyperparameters) -> int | list[int] | None:
        """What to edit where `layer` is the one to edit: the hyperparameters' own layers where
        they end there, else as many as the published ones, the last of them `layer`. A number for
        methods of one layer, None for those that edit all."""
        if not hasattr(self.published, "layers"):
            return layer
        own = getattr(hyperparameters, "layers", None)
        if own and own[-1] == layer:
            return list(own)
        if self.published.layers is None:
            return None
        count = len(own or self.published.layers)
        return list(range(max(0, layer - count + 1), layer + 1))

    def uncalibrated(self, decoder: Decoder):
        """The hyperparameters of a model that nothing is known of, without layers."""
        normed = self.before_norm if decoder.architecture.mlp_norm else {}
        changes = {**self.elsewhere, **normed}
        words = f"{self.published.preset}'s{', changed' * bool(changes)}, for want of this model's"
        return dataclasses.replace(self.unplaced(self.published), **changes, preset=words)

    @staticmethod
    def unplaced(preset):
        """A preset without the layers that are another model's."""
        for name in ("layer", "layers"):
            if hasattr(preset, name):
                return dataclasses.replace(preset, **{name: None})
        return preset

    def _own(self, decoder: Decoder | None):
        """What calibration found for the model, else its preset, else the published numbers without
        their layers; with words that say which."""
        published = self.published
        if decoder is None:
            return published
        if (calibration := stored_calibration(decoder)) and self.name in calibration["presets"]:
            return self._calibrated(calibration, decoder)
        if (name := preset_name(decoder)) in self.presets:
            return self.presets[name]
        return self.uncalibrated(decoder)

    def _calibrated(self, calibration: Mapping, decoder: Decoder | None):
        """The method's part of a calibration."""
        found = preset_of(calibration, self.name, decoder)
        layers = found.pop("layers")
        where = {"layers": layers} if hasattr(self.published, "layers") else {"layer": layers[-1]}
        try:
            return self._changed(self.published, {**found, **where,
                                                  "preset": "found by calibration"})
        except RomeError as error:
            raise RomeError(f"this calibration was made by another version ({error}); make one "
                            "anew with rome-mlx calibrate") from error

    def _changed(self, own, given: Mapping):
        known = {one.name for one in dataclasses.fields(own)}
        if unknown := sorted(map(str, set(given) - known)):
            raise RomeError(f"unknown hyperparameters {', '.join(unknown)} of {self.name}; "
                            f"choose from {', '.join(sorted(known - {'preset'}))}")
        try:
            return dataclasses.replace(own, **{"preset": f"{own.preset}, changed", **given})
        except (TypeError, ValueError) as error:
            if isinstance(error, RomeError):
                raise
            raise RomeError(f"hyperparameters {dict(given)}: {error}; give numbers") from error
