"""Sums of k kᵀ and of k, and what they say."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

_STRIPES = 8


@dataclass
class SecondMoment:
    """Running E[k kᵀ] of MLP keys, not centred, as ROME uses it (paper, section 3.1).

        moment = SecondMoment(dim=1536)
        moment.add(keys)                 # (n, dim) float32
        C = moment.value()               # (dim, dim) float64

    The keys of one call are summed in float32, by the matrix product, and calls in float64, so
    the error is that of one product, about 1e-7 of the sum, however many calls there are. Of the
    product, stripes that cover the upper triangle are computed: 9/16 of the arithmetic. Takes
    8 dim² bytes, and dim²/2 more while it adds.

    total: Σ k kᵀ, (dim, dim) float64, upper triangle; keys: Σ k, (dim,) float64.
    first: a copy of the sums when there were fewer, to see whether they settle.
    """

    dim: int
    count: int = 0
    total: np.ndarray = field(default=None, repr=False)
    keys: np.ndarray = field(default=None, repr=False)
    first: "Triangle | None" = field(default=None, repr=False)

    def __post_init__(self):
        if self.total is None:
            self.total, self.keys = np.zeros((self.dim, self.dim)), np.zeros(self.dim)

    def stripes(self) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) of the total that together cover its upper triangle."""
        step = -(-self.dim // _STRIPES)
        for begin in range(0, self.dim, step):
            yield slice(begin, begin + step), slice(begin, self.dim)

    def add(self, keys: mx.array) -> None:
        """Add keys (n, dim)."""
        keys = keys.astype(mx.float32)
        for rows, columns in self.stripes():
            self.total[rows, columns] += np.array(keys[:, rows].T @ keys[:, columns], copy=False)
        self.keys += np.array(mx.ones((1, keys.shape[0])) @ keys)[0]
        self.count += keys.shape[0]

    def clear(self) -> None:
        self.total[:], self.keys[:], self.count = 0, 0, 0

    def value(self) -> np.ndarray:
        """C (dim, dim) float64, symmetric."""
        return symmetric(self.total / max(1, self.count))

    def mean(self) -> np.ndarray:
        """E[k] (dim,) float64."""
        return self.keys / max(1, self.count)

    def triangle(self) -> "Triangle":
        """C as it is stored."""
        return Triangle.of(self.total, self.count)


@dataclass(frozen=True)
class Triangle:
    """The upper triangle of a C, row after row, (dim (dim + 1) / 2,) float32, of `count` keys."""

    upper: np.ndarray
    count: int

    @classmethod
    def of(cls, total: np.ndarray, count: int) -> "Triangle":
        """From the upper triangle of Σ k kᵀ."""
        dim = len(total)
        upper, at = np.empty(dim * (dim + 1) // 2, np.float32), 0
        for i in range(dim):
            upper[at: at + dim - i] = total[i, i:] / count
            at += dim - i
        return cls(upper, count)

    def total(self, dim: int) -> np.ndarray:
        """Σ k kᵀ (dim, dim) float64, upper triangle."""
        out, at = np.zeros((dim, dim)), 0
        for i in range(dim):
            out[i, i:] = self.upper[at: at + dim - i]
            at += dim - i
        out *= self.count
        return out


def symmetric(upper: np.ndarray) -> np.ndarray:
    """The whole matrix of an upper triangle, in place."""
    for i in range(len(upper)):
        upper[i:, i] = upper[i, i:]
    return upper
