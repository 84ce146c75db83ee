"""The moments an editor works with, from whatever the caller has, and which they were."""

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..models.applied import without_edits
from ..models.decoder import Decoder
from ..models.identity import Identity
from ..models.loading import describe
from ..storage.ranks import Ranks
from . import store
from .corpus import Corpus
from .estimator import about_layers, second_moments
from .quality import THIN
from .second_moment import SecondMoment


class Lookup:
    """C at some layers of a model: found and checked at once, read when asked for.

        found = find_moments(model, tokenizer, [4, 5])
        found.matrix(5)              # (d_in, d_in) float64
        found.used                   # {5: {"corpus": "wikipedia", "tokens": 100096, "sha256": …}}
    """

    def __init__(self, model, tokenizer, layers, moments=None):
        decoder = Decoder(model)
        now = Identity.of(model)
        self.model, self.given = model, moments
        self._model_path = describe(model, tokenizer)["path"]
        layers = [decoder.check_layer(layer) for layer in layers]
        self.about = about_layers(decoder, tokenizer, layers, now.unedited)
        self._sources = {layer: self._source(layer, now) for layer in layers}
        self._used: dict[int, dict] = {}

    def matrix(self, layer: int) -> np.ndarray:
        """C (d_in, d_in) float64 at a layer."""
        held = self._sources[layer][0]
        if isinstance(held, Path):
            return store.read(held)[0].value()
        return held.value() if isinstance(held, SecondMoment) else held

    @property
    def used(self) -> dict[int, dict]:
        """{layer: {"corpus", "tokens", "sha256"}}: the hash is of the upper triangle in float32,
        as it is stored, or of the array that was given, in float64."""
        for layer, (held, corpus, tokens) in self._sources.items():
            if layer not in self._used:
                self._used[layer] = {"corpus": corpus, "tokens": tokens, "sha256": _sha256(held)}
        return self._used

    def thin(self) -> dict[int, float]:
        """{layer: tokens per dimension} where they are too few."""
        per_dimension = {layer: tokens / self.about[layer]["dim"]
                         for layer, (_, _, tokens) in self._sources.items() if tokens is not None}
        return {layer: tokens for layer, tokens in per_dimension.items() if tokens < THIN}

    def command(self, layers) -> str:
        """What counts moments of these layers."""
        return (f"rome-mlx moments --layers {','.join(map(str, layers))} --corpus self "
                f"--tokens {enough_tokens(self.about)} --model {self._model_path}")

    def _source(self, layer: int, now: Identity) -> tuple:
        """(a path, SecondMoment or array, corpus, tokens) of a layer, checked."""
        about, moments = self.about[layer], self.given
        if isinstance(moments, Mapping):
            if layer not in moments:
                raise RomeError(f"the moments given are of layers {sorted(moments)}, not {layer}; "
                                f"make them with: {self.command([layer])}")
            found = getattr(moments, "about", {}).get(layer, {})
            self._check(Path(f"layer {layer}"), {**about, **found}, layer, now)
            held = _square(moments[layer], about["dim"])
            return held, found.get("corpus", "given"), getattr(held, "count", None)
        path = store.find(about) if moments is None else store.layer_path(moments, layer)
        if path is None:
            raise RomeError(f"no second moments for layer {layer} of this model; make them with: "
                            f"{self.command([layer])}")
        if not path.exists():
            raise RomeError(f"{str(moments)!r} has no {path.name}; make it with: "
                            f"{self.command([layer])} --output {moments}")
        found = store.read_about(path)
        self._check(path, found, layer, now)
        return path, found.get("corpus", "not said"), found.get("count")

    def _check(self, path: Path, found: dict, layer: int, now: Identity) -> None:
        """Moments are of the unedited model; those of the edited one serve while it is that."""
        edits = (found.get("identity") or {}).get("edits")
        wanted = {"identity": now.to_json()} if edits else {}
        store.check(path, found, self.about[layer] | wanted)


def find_moments(model, tokenizer, layers, moments=None) -> Lookup:
    """C at some layers, checked.

    Args:
        moments: what `second_moments` returned, a directory of stored ones, {layer: array}, or
            None for shipped or cached ones; a Lookup of this model serves as it is.

    Raises RomeError, with the command that makes them, where there are none, and for those of
    another model, layer or shape.
    """
    if isinstance(moments, Lookup):
        if moments.model is model and set(layers) <= set(moments.about):
            return moments
        moments = moments.given
    return Lookup(model, tokenizer, layers, moments)


def moment_matrix(model, tokenizer, layer: int, moments=None) -> np.ndarray:
    """C (d_in, d_in) float64 at a layer; arguments and errors as of `find_moments`."""
    return find_moments(model, tokenizer, [layer], moments).matrix(layer)


def ensure_moments(model, tokenizer, layers: int | list[int], moments=None, *, seed: int = 0,
                   corpus=None,
                   report: Callable[[float, float | None], None] | None = None) -> Lookup:
    """As `find_moments`, of one layer or several, after making those that are missing over
    `corpus`, as `second_moments` takes it, or the model's own samples.

    They are counted on the model without its edits, in one pass, and cached; stderr says so, and
    where C is of too few tokens. report: as for `second_moments`.
    """
    layers = [layers] if isinstance(layers, int) else layers
    if moments is None:
        _make_missing(model, tokenizer, layers, seed, Corpus.of(corpus or "self"), report)
    found = find_moments(model, tokenizer, layers, moments)
    if thin := found.thin():
        _say_once(f"C of layers {list(thin)} is thin, {min(thin.values()):.1f} tokens per "
                  f"dimension; count more with {found.command(thin)} --output DIR and give "
                  "--moments DIR, or use rome's hyperparameter ridge, such as 1e-2")
    return found


def moments_told(used: dict | None) -> str | None:
    """Which C was used, in words for people, from `Lookup.used` or `Edit.moments`."""
    counted: dict[tuple, list] = {}
    for layer, about in (used or {}).items():
        counted.setdefault((about["corpus"], about["tokens"]), []).append(str(layer))
    told = []
    for (corpus, tokens), layers in counted.items():
        name = "the model's own samples" if corpus == "self" else corpus
        told.append(f"C of layer{'s' * (len(layers) > 1)} {', '.join(layers)}: "
                    f"{name if tokens is None else f'{tokens:,} tokens of {name}'}")
    return "; ".join(told) or None


def enough_tokens(about: dict[int, dict]) -> int:
    """Tokens enough for the widest of the layers."""
    return THIN * max(one["dim"] for one in about.values())


def at_hand(decoder: Decoder, tokenizer, layers) -> dict[int, Path]:
    """{layer: file} of the shipped and cached moments of the model without its edits."""
    abouts = about_layers(decoder, tokenizer, layers, Identity.of(decoder.model).unedited)
    return {layer: path for layer, about in abouts.items()
            if (path := store.find(about)) is not None}


def _make_missing(model, tokenizer, layers, seed: int, corpus: Corpus, report) -> None:
    identity = Identity.of(model).unedited
    abouts = about_layers(Decoder(model), tokenizer, layers, identity)
    missing = [layer for layer, about in abouts.items() if store.find(about) is None]
    if not missing:
        return
    name = re.sub(r"[^\w.-]+", "-", abouts[missing[0]]["model"])
    output = store.moments_cache() / f"{name}-{identity.digest}-{_slug(corpus)}-{seed}"
    tokens = enough_tokens({layer: abouts[layer] for layer in missing})
    what = "the model's own samples" if corpus.sources == ["self"] else str(corpus)
    _say_once(f"no second moments for layers {missing}; making them from {tokens:,} tokens of "
              f"{what}, kept in {output}")
    with without_edits(model):
        second_moments(model, tokenizer, missing, corpus, tokens, seed=seed, output=output,
                       progress=True, report=report)
    Ranks(f"what was counted is in {output}: start it again").any(True)  # the first has written


def _slug(corpus: Corpus) -> str:
    """A corpus in a directory's name."""
    text = str(corpus)
    return text if text.isalnum() else hashlib.sha256(text.encode()).hexdigest()[:8]


@cache
def _say_once(sentence: str) -> None:
    if Ranks("").rank == 0:
        print(f"rome-mlx: {sentence}", file=sys.stderr)


def _square(value, dim: int) -> SecondMoment | np.ndarray:
    held = value if isinstance(value, SecondMoment) else np.asarray(value, np.float64)
    shape = (held.dim, held.dim) if isinstance(held, SecondMoment) else held.shape
    if shape != (dim, dim):
        raise RomeError(f"the second moment has shape {shape}, but the layer's keys are "
                        f"{dim} wide; give moments of this model and layer")
    return held


def _sha256(held) -> str:
    if isinstance(held, Path):
        return store.sha256_of(held)
    return store.sha256(held.triangle().upper if isinstance(held, SecondMoment) else held)
