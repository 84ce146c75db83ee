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

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.b.shape[1], self.a.shape[0]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What it does, in float32: the same for a saved change and its loaded copy."""
        return tuple(np.ascontiguousarray(x, np.float32) for x in (self.a, self.b))

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius, without the product."""
        squares = np.sum((self.a.T @ self.a) * (self.b @ self.b.T))
        return float(np.sqrt(max(0.0, squares)))

    @property
    def change(self) -> np.ndarray:
        """(in, out) float64, W += changeᵀ."""
        return self.a @ self.b

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
