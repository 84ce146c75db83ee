"""What an MLP has to say so that the norm after it adds what is wanted (Gemma, OLMo 2, GLM-4).

Every such norm in the table of architectures is n(m) = g ∘ m / rms(m). So it sees where m points,
and not how long it is; and what it gives lies on an ellipsoid, where what is wanted need not lie.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_LONG = 1e4  # numbers beside which a norm's ε is nothing
_KEEP = 1e-6  # of g²'s mean: how much m's own direction counts where the gain is next to none
_HALVINGS = 80


def normed(norm: nn.Module, outputs: np.ndarray) -> np.ndarray:
    """n(m) (rows, dim) float64 of MLP outputs m (rows, dim)."""
    return np.array(norm(mx.array(outputs, mx.float32)).astype(mx.float32), np.float64)


def before_norm(norm: nn.Module, outputs: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """R (rows, dim) float64 for which n(m + R) comes nearest to n(m) + missing, and ‖m + R‖ = ‖m‖.

    outputs: m, missing: (rows, dim).
    """
    gain = normed(norm, np.full((1, outputs.shape[1]), _LONG))[0]
    direction = nearest(gain, normed(norm, outputs) + missing, outputs / _rms(outputs))
    return direction * _rms(outputs) - outputs


def nearest(gain: np.ndarray, wanted: np.ndarray, now: np.ndarray) -> np.ndarray:
    """a (rows, dim) of rms 1 that minimises ‖g ∘ a - t‖² + ε ‖a - a₀‖².

    gain: g (dim,); wanted: t, now: a₀, (rows, dim). a = (g ∘ t + ε a₀) / (g² + ε + μ), and there
    is one μ for which all denominators are positive and rms(a) is 1.
    """
    keep = _KEEP * np.mean(gain**2)
    above = gain**2 - np.min(gain**2)  # the denominators are this + ν, ν > 0
    top = gain * wanted + keep * now
    low, high = np.zeros((len(top), 1)), _rms(top)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        long = _rms(top / (above + middle)) > 1
        low, high = np.where(long, middle, low), np.where(long, high, middle)
    found = top / (above + high)
    return found / _rms(found)


def _rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(x**2, axis=-1, keepdims=True))
