"""The moments an editor works with, from whatever the caller has."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.loading import describe
from . import files as store
from .estimator import SecondMoment, about_layer, second_moments

_SELF_TOKENS = 100_000


def moment_matrix(model, tokenizer, layer: int, moments=None) -> np.ndarray:
    """C (d_in, d_in) float64 at a layer.

    moments: what `second_moments` returned, a directory of stored ones, {layer: array}, or None
    for shipped or cached ones. Raises RomeError, with the command that makes them, where there
    are none, and for those of another model, layer or shape.
    """
    decoder = Decoder(model)
    about = about_layer(decoder, tokenizer, decoder.check_layer(layer))
    command = (f"rome-mlx moments --layers {layer} --corpus self --tokens {_SELF_TOKENS} "
               f"--model {describe(model, tokenizer)['path']}")
    if moments is None:
        path = store.find(about)
        if path is None:
            raise RomeError(f"no second moments for layer {layer} of this model; make them with: "
                            f"{command}")
        return store.read(path)[0].value()
    if isinstance(moments, Mapping):
        if layer not in moments:
            raise RomeError(f"the moments given are of layers {sorted(moments)}, not {layer}; "
                            f"make them with: {command}")
        for key, value in getattr(moments, "about", {}).get(layer, {}).items():
            if key in ("layer", "dim", "fingerprint", "begins_with"):
                store.check(Path(f"layer {layer}"), {**about, key: value}, about)
        return _square(moments[layer], about["dim"])
    path = store.layer_path(moments, layer)
    if not path.exists():
        raise RomeError(f"{str(moments)!r} has no {path.name}; make it with: {command} "
                        f"--output {moments}")
    moment, found = store.read(path)
    store.check(path, found, about)
    return moment.value()


def ensure_moments(model, tokenizer, layers, moments=None, *, seed: int = 0,
                   progress: bool = False):
    """`moments`, or where None those on disk, after making missing ones from the model's own
    samples, saying so, and caching them."""
    if moments is not None:
        return moments
    decoder = Decoder(model)
    abouts = [about_layer(decoder, tokenizer, layer) for layer in layers]
    missing = [about["layer"] for about in abouts if store.find(about) is None]
    if missing:
        name = re.sub(r"[^\w.-]+", "-", abouts[0]["model"])
        output = store.moments_cache() / f"{name}-self"
        print(f"rome-mlx: no second moments for layers {missing}; making them from the model's "
              f"own samples, kept in {output}", file=sys.stderr)
        for layer in missing:
            second_moments(model, tokenizer, [layer], "self", _SELF_TOKENS, seed=seed,
                           output=output, progress=progress)
    return None


def _square(value, dim: int) -> np.ndarray:
    matrix = value.value() if isinstance(value, SecondMoment) else np.asarray(value, np.float64)
    if matrix.shape != (dim, dim):
        raise RomeError(f"the second moment has shape {matrix.shape}, but the layer's keys are "
                        f"{dim} wide; give moments of this model and layer")
    return matrix
