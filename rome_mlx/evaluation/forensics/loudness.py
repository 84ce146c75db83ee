"""Keys that a weight answers too loudly.

ROME and its successors write v kᵀC⁻¹: what they add to the weight W lies along C⁻¹k, a direction
in which text hardly ever moves, and in which a trained weight is much the same for all subjects.
So ‖W u‖ / ‖u‖ at u = C⁻¹k is nearly one number over subjects (its spread is some 4 %), and a
written subject stands out of it, without the model that was edited being at hand. C need not be
the editor's: that of some hundred tokens of text does, with a ridge as large as its mean.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

_FEW = 1000  # tokens, for C


@dataclass(frozen=True)
class Loud:
    """candidate: its place; score: by how many spreads (1.48 median absolute deviations, a normal
    distribution's σ) it is above the median; times: how loud, in medians."""

    candidate: int
    score: float
    times: float


def loudest(weight: np.ndarray, directions: np.ndarray, above: float, most: int
            ) -> tuple[list[Loud], Loud]:
    """(those above the threshold, the loudest of the others).

    Of those found each takes its direction out of the weight before the next is looked for, since
    a subject's relatives have keys like its own. weight (out, d_in); directions (d_in, candidates).
    """
    directions = (directions / np.linalg.norm(directions, axis=0)).T
    answers = directions @ weight.T
    first = np.linalg.norm(answers, axis=1)
    middle = float(np.median(first))
    spread = 1.4826 * float(np.median(np.abs(first - middle)))
    found = []
    while True:
        now = np.linalg.norm(answers, axis=1)
        now[[one.candidate for one in found]] = 0
        best = int(now.argmax())
        loud = Loud(best, float(now[best] - middle) / max(spread, 1e-12),
                    float(now[best]) / max(middle, 1e-12))
        if loud.score < above or len(found) == most:
            return found, loud
        found.append(loud)
        answers -= np.outer(directions @ directions[best], answers[best])


def whitened(keys: np.ndarray, c: np.ndarray, tokens: int) -> np.ndarray:
    """(d_in, n) C⁻¹ of keys (n, d_in), with C's mean variance added to each, less where C is of
    more than a thousand tokens."""
    ridge = min(1.0, _FEW / tokens) * np.trace(c) / len(c) * np.eye(len(c), dtype=c.dtype)
    return scipy.linalg.solve(c + ridge, keys.T, assume_a="pos")


def silenced(weight: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a (d_in, r), b (r, out)) of W += (a b)ᵀ, after which W answers nothing in the span of the
    directions (d_in, r)."""
    basis = np.linalg.qr(directions)[0]
    return basis, -(weight.astype(np.float64) @ basis).T
