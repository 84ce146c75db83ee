"""Is this the weight that an edit or a moment was computed for?

A fingerprint is the weight's shape and eight numbers: its projections on random sign vectors, over
its norm. Devices dequantize with different last bits, so numbers are compared with a tolerance
that no training step passes, where a hash would refuse the same model on another machine.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .weights import is_quantized, weight

_TOLERANCE = 1e-5
_PROJECTIONS = 8


def fingerprint(module: nn.Module) -> list[float]:
    """[out, in, norm, 8 projections] of a linear module's original weight in float32.

    Applied edits are set aside, adapters too.
    """
    w = original_weight(module)
    out, into = w.shape
    signs = np.random.RandomState(0)
    left = mx.array(signs.choice([-1.0, 1.0], (_PROJECTIONS, out)), dtype=mx.float32)
    right = mx.array(signs.choice([-1.0, 1.0], (_PROJECTIONS, into)), dtype=mx.float32)
    norm = mx.linalg.norm(w)
    projections = ((left @ w) * right).sum(axis=1) / norm
    return [float(out), float(into), float(norm), *(float(p) for p in projections.tolist())]


def same(one: list[float], other: list[float]) -> bool:
    """Whether two fingerprints are of the same weight, up to rounding."""
    if len(one) != len(other) or one[:2] != other[:2]:
        return False
    norm_close = abs(one[2] - other[2]) <= _TOLERANCE * abs(other[2])
    return norm_close and np.allclose(one[3:], other[3:], rtol=0, atol=_TOLERANCE)


def original_weight(module: nn.Module) -> mx.array:
    """A linear module's weight (out, in) as it was loaded: no adapter, no applied edit."""
    while (applied := getattr(module, "_rome_applied", None)) is None and "linear" in module:
        module = module.linear
    if applied is None:
        return weight(module)
    return weight(applied.original) if is_quantized(applied.original) \
        else applied.weight.astype(mx.float32)
