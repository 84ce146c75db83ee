"""What has been written into a weight, as one least-squares problem that goes on.

A batch is written at keys K with residuals R, beside all keys K_p before it:
Δ = R Kᵀ(B + K_pK_pᵀ + KKᵀ)⁻¹. Batch after batch this is recursive least squares, and all changes
together are ΔW = T G⁻¹ with G = B + Σ kkᵀ and T = Σ t kᵀ, where t = v - W₀k is what the weight is
to give at k beyond what it gave at the start. G and T grow with no batch; taking a key and its
target out of both takes what it wrote back, as if it had never been there.
"""

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ..errors import RomeError


class LeastSquares:
    """The normal equations of one weight, float64.

    base: B (k, k), such as λC; basis: U (d_in, k), where the weight may change in a subspace only:
    keys are then Uᵀk.
    """

    def __init__(self, base: np.ndarray, basis: np.ndarray | None = None):
        self._normal = np.array(base, np.float64)
        self._basis = basis
        self._targets: np.ndarray | None = None  # Tᵀ (k, d_out)

    def update(self, keys: np.ndarray) -> np.ndarray:
        """A (d_in, n) of the next batch's Δ = R Aᵀ, at keys K (d_in, n)."""
        inside = self._inside(keys)
        return self._outside(_solved(self._normal + inside @ inside.T, inside))

    def protect(self, keys: np.ndarray) -> None:
        """Keys (d_in, n) at which the weight, as it is, is to stay."""
        inside = self._inside(keys)
        self._normal += inside @ inside.T

    def add(self, keys: np.ndarray, targets: np.ndarray) -> None:
        """Hold what was written: keys (d_in, n), targets (d_out, n)."""
        self._add(keys, targets, 1.0)

    def remove(self, keys: np.ndarray, targets: np.ndarray) -> None:
        """Take back what `add` was given."""
        self._add(keys, targets, -1.0)

    def change(self) -> np.ndarray:
        """ΔWᵀ (d_in, d_out) of everything that is held."""
        if self._targets is None:
            raise RomeError("nothing has been written yet; add keys and their targets")
        return self._outside(_solved(self._normal, self._targets))

    def factor(self, keys: np.ndarray) -> np.ndarray:
        """A (d_in, n) of ΔW = T Aᵀ, at the keys (d_in, n) of everything that is held, T (d_out, n)
        their targets: the change as thin as the keys are few."""
        return self._outside(_solved(self._normal, self._inside(keys)))

    def _add(self, keys: np.ndarray, targets: np.ndarray, sign: float) -> None:
        inside = self._inside(keys)
        self._normal += sign * (inside @ inside.T)
        written = sign * (inside @ targets.T)
        self._targets = written if self._targets is None else self._targets + written

    def _inside(self, keys: np.ndarray) -> np.ndarray:
        return keys if self._basis is None else self._basis.T @ keys

    def _outside(self, columns: np.ndarray) -> np.ndarray:
        return columns if self._basis is None else self._basis @ columns


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return cho_solve(cho_factor(matrix), right)
    except (LinAlgError, ValueError) as error:
        raise RomeError("the normal equations are not positive definite: the second moment was "
                        "counted on too few tokens; count more") from error
