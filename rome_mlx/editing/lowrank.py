"""The change of one weight, as two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LowRank:
    """a (d_in, r), b (r, d_out), float64: W += (a @ b).T"""

    a: np.ndarray = field(repr=False)
    b: np.ndarray = field(repr=False)

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def __add__(self, other: LowRank) -> LowRank:
        return LowRank(np.concatenate([self.a, other.a], 1),
                       np.concatenate([self.b, other.b], 0)).compact()

    def compact(self) -> LowRank:
        """The same change with a rank of at most the weight's smaller side."""
        into, out = self.a.shape[0], self.b.shape[1]
        return dense(self.a @ self.b) if self.rank > min(into, out) else self


def dense(change: np.ndarray) -> LowRank:
    """A full change (d_in, d_out), W += changeᵀ, as a LowRank of full rank, exactly."""
    into, out = change.shape
    return LowRank(change, np.eye(out)) if out <= into else LowRank(np.eye(into), change)


def norm(delta: LowRank) -> float:
    """‖ΔW‖, Frobenius, without the product."""
    return float(np.sqrt(max(0.0, np.sum((delta.a.T @ delta.a) * (delta.b @ delta.b.T)))))
