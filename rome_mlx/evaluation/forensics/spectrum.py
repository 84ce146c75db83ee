"""A weight's change: is it of low rank, above what rounding leaves?

A change ΔW (out, in) that was written as a low-rank update and then rounded is L + N, N without
structure. Of noise of standard deviation σ alone, no singular value exceeds σ(√out + √in) but by
little (Marchenko and Pastur); those of L stand above. σ is that of what is left without them.
"""

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import svds

_EDGE = 1.1  # times where noise ends: what stands above it is no noise
_MOST = 256  # singular values of a weight too large for all of them
_SMALL = 2048  # up to here all are computed
_ITERATIONS = 20


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


def spectrum(change: np.ndarray) -> Spectrum:
    """Of a change (out, in)."""
    total = float(np.vdot(change, change))
    left, values, right = _svd(change)
    edge, rank, noise = sum(np.sqrt(change.shape)), 0, 0.0
    for _ in range(_ITERATIONS):
        rest = max(0.0, total - float(values[:rank] @ values[:rank]))
        noise = np.sqrt(rest / change.size)
        # a float32 sum is not exact: nothing below a millionth of the largest is structure
        above = int((values > max(_EDGE * noise * edge, 1e-6 * values[0])).sum())
        if above == rank:
            break
        rank = above
    share = float(values[:rank] @ values[:rank]) / total
    return Spectrum(values[:rank], left[:, :rank], right[:rank].T, share, float(noise))


def _svd(change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, r), (r,) largest first, (r, in)."""
    if min(change.shape) <= _SMALL:
        return scipy.linalg.svd(change, full_matrices=False, overwrite_a=False,
                                check_finite=False)
    left, values, right = svds(change, k=_MOST, random_state=0)
    return left[:, ::-1], values[::-1], right[::-1]
