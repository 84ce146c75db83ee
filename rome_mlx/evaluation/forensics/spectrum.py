"""A weight's change: is it of low rank, above what rounding leaves?

A change ΔW (out, in) that was written as a low-rank update and then rounded is L + N, N without
structure. Of noise of standard deviation σ alone, no singular value exceeds σ(√out + √in) but by
little (Marchenko and Pastur); those of L stand above. σ is that of what is left without them.

Rounding does not leave the same noise everywhere: some rows and groups have coarser steps, and the
largest values of such noise stand above what its mean says. Where its variance is known, rows and
columns are scaled until every one has the same (biwhitening: Landa, Zhang and Kluger, 2022).
"""

from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import svds

_EDGE = 1.1  # times where noise ends: what stands above it is no noise
_MOST = 256  # singular values of a weight too large for all of them
_SMALL = 2048  # up to here all are computed
_ITERATIONS = 20
_FLOOR = 0.01  # of the mean variance: the least that a number is taken to have


@dataclass(frozen=True)
class Spectrum:
    """values: the singular values above the noise; left (out, r), right (in, r): their vectors;
    share: their part of ‖ΔW‖²; noise: σ of the rest."""

    values: np.ndarray
    left: np.ndarray = field(repr=False)
    right: np.ndarray = field(repr=False)
    share: float
    noise: float

    @property
    def rank(self) -> int:
        return len(self.values)

    @property
    def top(self) -> float:
        """The largest value, of noise where nothing stands above it."""
        noise = self.noise * (np.sqrt(len(self.left)) + np.sqrt(len(self.right)))
        return float(self.values[0]) if self.rank else float(noise)

    def largest(self, count: int) -> "Spectrum":
        """As many of the values; share and noise stay those of the whole."""
        return replace(self, values=self.values[:count], left=self.left[:, :count].copy(),
                       right=self.right[:, :count].copy())


def spectrum(change: np.ndarray, variance: np.ndarray | None = None) -> Spectrum:
    """Of a change (out, in) float64; variance: (out, in), of the noise in it, up to a factor."""
    total = float(np.vdot(change, change))
    if variance is None:
        left, values, right = _above_noise(change)
    else:
        rows, columns = _whitening(variance)
        left, values, right = _above_noise(rows[:, None] * change * columns)
        left, values, right = _svd_of(left * values / rows[:, None], right.T / columns[:, None])
    held = float(values @ values)
    return Spectrum(values, left, right.T, held / total,
                    float(np.sqrt(max(0.0, total - held) / change.size)))


def _above_noise(change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular vectors and values (out, r), (r,), (r, in) that noise would not reach."""
    total = float(np.vdot(change, change))
    left, values, right = _svd(change)
    edge, rank = sum(np.sqrt(change.shape)), 0
    for _ in range(_ITERATIONS):
        rest = max(0.0, total - float(values[:rank] @ values[:rank]))
        noise = np.sqrt(rest / change.size)
        # a float32 sum is not exact: nothing below a millionth of the largest is structure
        above = int((values > max(_EDGE * noise * edge, 1e-6 * values[0])).sum())
        if above == rank:
            break
        rank = above
    return left[:, :rank], values[:rank], right[:rank]


def _whitening(variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(out,) and (in,): what rows and columns are multiplied by, so that the variances of each
    have a mean of one (Sinkhorn and Knopp)."""
    variance = np.maximum(variance, max(_FLOOR * variance.mean(), 1e-30))
    columns = np.ones(variance.shape[1])
    for _ in range(_ITERATIONS):
        rows = variance.shape[1] / (variance @ columns)
        columns = variance.shape[0] / (rows @ variance)
    return np.sqrt(rows), np.sqrt(columns)


def _svd_of(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, r), (r,), (r, in) of a bᵀ; a (out, r), b (in, r)."""
    (p, r), (q, s) = np.linalg.qr(a), np.linalg.qr(b)
    left, values, right = np.linalg.svd(r @ s.T)
    return p @ left, values, right @ q.T


def _svd(change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, r), (r,) largest first, (r, in)."""
    if min(change.shape) <= _SMALL:
        return scipy.linalg.svd(change, full_matrices=False, overwrite_a=False,
                                check_finite=False)
    left, values, right = svds(change, k=_MOST, random_state=0)
    return left[:, ::-1], values[::-1], right[::-1]
