"""Locate the layer that decides a fact, edit it, verify: the whole way in one call."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .editing.edit import Edit
from .editing.hyperparameters import PRESETS, depth_layer, preset_name
from .editing.hyperparameters import hyperparameters as resolve
from .editing.methods import ONE_BY_ONE, WITHOUT_MOMENTS, layers_up_to
from .editing.methods import method as find_method
from .errors import RomeError
from .evaluation.verify import Verification, set_aside, verify
from .facts import EditRequest
from .models.decoder import Decoder
from .models.identity import fingerprint, same
from .moments.lookup import ensure_moments
from .storage.places import data_path
from .tracing.decision import decide, first_candidate, scaled_window
from .tracing.trace import KINDS, Trace, trace


@dataclass(frozen=True)
class LayerChoice:
    """layer; how: given, trace, profile or preset; reason: one sentence."""

    layer: int
    how: str
    reason: str


@dataclass(frozen=True)
class Result:
    """request; trace: of the fact before the edit; layer and how it was chosen; the edit, not
    applied; verification: before and after; source: the model and tokenizer it is of."""

    request: EditRequest
    trace: Trace
    choice: LayerChoice
    edit: Edit
    verification: Verification
    source: tuple = field(repr=False, compare=False)

    @property
    def layer(self) -> int:
        return self.choice.layer

    def to_json(self) -> dict:
        """As `rome-mlx edit --json` writes it, but for seconds and adapter."""
        return {"request": asdict(self.request), "method": self.edit.method,
                "layer": self.layer, "layers": self.edit.layers,
                "layer_choice": asdict(self.choice), "trace": self.trace.to_json(),
                "losses": self.edit.losses, **self.verification.to_json()}

    def maps(self) -> list[Trace]:
        """The fact traced before the edit over all tokens: hidden states, MLPs, attentions."""
        model, tokenizer = self.source
        with set_aside(model, self.edit):
            return [trace(model, tokenizer, self.request.fact, kind=kind, noise=self.trace.noise,
                          samples=self.trace.samples, window=self.trace.window) for kind in KINDS]

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page: maps, layer, losses, before and after."""
        from .view.report import edit_report

        return edit_report([self], path)


def locate_then_edit(model, tokenizer, request: EditRequest, *,
                     paraphrases: Sequence[str] = (), neighbors: Sequence[str] = (),
                     **options) -> Result:
    """Trace the fact, choose the layer, edit, trace again. The model is left as it was.

    layer: "auto", by the fact's own trace where it is clear and the model's stored profile where
    it is not, or a number; methods of several layers edit those up to it. method: a name;
    moments: as for `rome`; missing ones are made from the model's own samples and cached.
    hyperparameters, context_templates, seed: the editor's; samples, noise: the trace's;
    progress: called with the name of each stage and what it found.
    """
    return locate_then_edit_all(model, tokenizer, [(request, paraphrases, neighbors)],
                                **options)[0]


def locate_then_edit_all(model, tokenizer, cases: Sequence[tuple], *, layer: int | str = "auto",
                         method: str = "rome", moments=None, hyperparameters=None,
                         context_templates=None, seed: int = 0, samples: int = 10, noise="s3",
                         progress: Callable[[str, dict], None] | None = None) -> list[Result]:
    """Write many requests in one edit, where their traces together say; a Result for each.

    cases: [(request, paraphrases, neighbors)], several for the methods that write many facts at
    once. Options as for `locate_then_edit`.
    """
    tell = progress or (lambda stage, found: None)
    decoder, edit_with = Decoder(model), find_method(method)
    given, hyperparameters = hyperparameters, resolve(hyperparameters, method, decoder)
    requests = [request for request, _, _ in cases]
    if len(requests) > 1 and method in ONE_BY_ONE:
        raise RomeError(f"{method} writes one request at a time; use memit, emmet or alphaedit")
    if layer != "auto":
        decoder.check_layer(layer)
    found = [trace(model, tokenizer, request.fact, kind="mlp", samples=samples, noise=noise,
                   window=scaled_window(len(decoder.layers)), token_range="subject_last")
             for request in requests]
    own = own_layer(decoder, given, hyperparameters)
    choice = (nearest_dense(decoder, choose_layer(decoder, *found, own=own)) if layer == "auto"
              else LayerChoice(layer, "given", "as asked"))
    tell("trace", {"trace": found[0], "choice": choice})
    where = layers_up_to(method, choice.layer, hyperparameters)
    if method not in WITHOUT_MOMENTS:
        moments = ensure_moments(model, tokenizer, [where] if isinstance(where, int) else where,
                                 moments, seed=seed,
                                 progress=progress is not None and sys.stderr.isatty())
    edit = edit_with(model, tokenizer, requests[0] if len(requests) == 1 else requests, where,
                     moments=moments, seed=seed, hyperparameters=hyperparameters,
                     context_templates=context_templates,
                     report=lambda losses: tell("step", losses))
    tell("edit", {"edit": edit})
    checks = [verify(model, tokenizer, edit, request=request, paraphrases=paraphrases,
                     neighbors=neighbors, samples=samples, noise=noise, side_effects=i == 0)
              for i, (request, paraphrases, neighbors) in enumerate(cases)]
    numbers = [{name: value for name, value in check.to_json().items() if name != "retrace"}
               for check in checks]
    edit.numbers = numbers[0] if len(numbers) == 1 else {"checks": numbers}
    return [Result(request, one, choice, edit, check, (model, tokenizer))
            for request, one, check in zip(requests, found, checks, strict=True)]


def choose_layer(decoder: Decoder, *found: Trace, own: int | None = None) -> LayerChoice:
    """The decisive layer of one fact, or of several on average, where it is clear; else, in a
    model with a preset, the method's `own` or ROME's; else the averaged one; else by depth."""
    subject = "this fact's trace" if len(found) == 1 else f"the mean of {len(found)} traces"
    effects = [one.indirect_effect[one.positions.index(one.subject_range[1] - 1)] for one in found]
    decision = decide(np.mean(effects, axis=0),
                      float(np.mean([one.total_effect for one in found])),
                      first_candidate(found[0].kind, found[0].window))
    if decision.clear:
        return LayerChoice(decision.layer, "trace", f"{subject} is clear: {decision.reason}")
    if (name := preset_name(decoder)) in PRESETS["rome"]:
        return LayerChoice(usual_layer(decoder) if own is None else own, "preset",
                           f"{subject} is not clear ({decision.reason}); the preset for {name}")
    profile = stored_profile(decoder)
    if profile is not None:
        return LayerChoice(profile["decisive_layer"], "profile",
                           f"{subject} is not clear ({decision.reason}); averaged over "
                           f"{profile['facts_used']} facts this layer decides")
    return LayerChoice(depth_layer(decoder), "preset", f"{subject} is not clear "
                       f"({decision.reason}) and there is neither a preset nor a profile of this "
                       "model: the layer at 15 % of the depth; rome-mlx locate makes a profile")


def own_layer(decoder: Decoder, given, hyperparameters) -> int | None:
    """The last layer that a method's hyperparameters name, where they are this model's own; None
    where they name none, and for another model's, `given` as "published" or by name."""
    if isinstance(given, str) and given != preset_name(decoder):
        return None
    layers = getattr(hyperparameters, "layers", None)
    return layers[-1] if layers else getattr(hyperparameters, "layer", None)


def usual_layer(decoder: Decoder) -> int:
    """The layer to edit in this model where no fact's trace says: of its preset, of its stored
    profile, or by depth."""
    if (name := preset_name(decoder)) in PRESETS["rome"]:
        return PRESETS["rome"][name].layer
    profile = stored_profile(decoder)
    return depth_layer(decoder) if profile is None else profile["decisive_layer"]


def nearest_dense(decoder: Decoder, choice: LayerChoice) -> LayerChoice:
    """The choice, moved to the nearest layer that can be edited: mixtures of experts cannot."""
    layer = min(decoder.dense_layers, key=lambda dense: abs(dense - choice.layer))
    if layer == choice.layer:
        return choice
    return LayerChoice(layer, choice.how, f"{choice.reason}; layer {choice.layer} is a mixture "
                       f"of experts, and {layer} is the nearest dense one")


def stored_profile(decoder: Decoder) -> dict | None:
    """The averaged effects that come with the package for this model, if there are any."""
    for path in sorted(data_path().glob("profile-*.json")):
        profile = json.loads(path.read_text("utf-8"))
        module = decoder.module(decoder.dense_layers[0], "down")
        if same(fingerprint(module), profile["fingerprint"]):
            return profile
    return None
