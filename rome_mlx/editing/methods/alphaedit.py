"""AlphaEdit: updates in the null space of what the model knows (2410.02355)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from ...errors import RomeError
from ...facts import EditRequest
from ..edit import Edit
from ..hyperparameters import ValueHyperparameters, named
from ..least_squares import LeastSquares
from ..method import Method
from ..spread import BEFORE_NORM, sampled_templates, spread

_MOST_ENERGY = 0.1  # of the keys', above which directions are no null space


@dataclass(frozen=True)
class AlphaEditHyperparameters(ValueHyperparameters):
    """energy: the share of E‖k‖² = trace C that the directions in which the weight may change hold
    at most; threshold: the published rule in its place, directions where C's eigenvalue is below
    it; regularization: λ, against large updates; anchor: as in MEMIT."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] | None = None
    energy: float = 0.01
    threshold: float | None = None
    regularization: float = 10.0
    anchor: float = 0.0


#: the published threshold and λ are in units of GPT-2 XL's keys; where keys have so little energy
#: as in a null space chosen by it, λ 10 leaves 0.1 to 0.3 of the change
_BY_ENERGY = {"energy": 0.05, "regularization": 0.1}

PRESETS = named({
    "gpt2-xl": AlphaEditHyperparameters(layers=(13, 14, 15, 16, 17), threshold=0.02),
    "gpt-j": AlphaEditHyperparameters(layers=(3, 4, 5, 6, 7, 8), threshold=0.02,
                                      v_num_grad_steps=25),
    "llama-3-8b": AlphaEditHyperparameters(layers=(4, 5, 6, 7, 8), threshold=0.02,
                                           v_num_grad_steps=25, v_lr=0.1),
    # by benchmarks/sweep_batch.py
    "smollm2-135m": AlphaEditHyperparameters(layers=(4, 5, 6), **_BY_ENERGY),
})


def alphaedit(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
              moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
              report: Callable[[dict], None] | None = None,
              earlier: Sequence[Edit] = (), values=None, written=None) -> Edit:
    """Write many facts at once, along directions that other keys hardly use, without undoing
    earlier batches (AlphaEdit paper, section 3).

    Arguments as for `memit`; hyperparameters: an AlphaEditHyperparameters, its preset's name, a
    dictionary or None. The edit's `details` say how large the null space was at each layer. The
    model is left as it was.
    """
    return spread(ALPHAEDIT, model, tokenizer, requests, layers, moments=moments,
                  context_templates=context_templates, hyperparameters=hyperparameters, seed=seed,
                  report=report, earlier=earlier, values=values, written=written)


def inside_null_space(hp: AlphaEditHyperparameters,
                      matrix: np.ndarray) -> tuple[LeastSquares, dict]:
    """The least squares whose Δ = Xᵀ solves (P(KKᵀ + K_pK_pᵀ) + λI) X = P K Rᵀ (AlphaEdit paper,
    eq. 14): with P = U Uᵀ it is that of the keys UᵀK with λI in place of λC."""
    basis, energy = null_space(matrix, hp.energy, hp.threshold)
    return (LeastSquares(hp.regularization * np.eye(basis.shape[1]), basis),
            {"null_space": {"directions": basis.shape[1], "of": basis.shape[0],
                            "energy": energy}})


def null_space(matrix: np.ndarray, energy: float,
               threshold: float | None = None) -> tuple[np.ndarray, float]:
    """Where keys hardly are: U (d_in, k), and the share of E‖k‖² = trace C along it; P = U Uᵀ.

    U holds the eigenvectors of C's smallest eigenvalues: as many as together have at most the share
    `energy` of its trace, or those below the threshold, where there is one (AlphaEdit paper,
    section 3.2). Raises RomeError where there are none, and where they hold more than a tenth.
    """
    values, vectors = eigh(matrix)
    shares = np.cumsum(values) / values.sum()
    count = int((shares <= energy if threshold is None else values < threshold).sum())
    if count == 0:
        raise RomeError(_empty(values, shares[0], energy, threshold))
    if (share := float(shares[count - 1])) > _MOST_ENERGY:
        raise RomeError(f"the null space would be {count:,} of {len(values):,} directions with "
                        f"{100 * share:.1f} % of the keys' energy, which is too many: at most "
                        f"{100 * _MOST_ENERGY:.0f} % are allowed; give a smaller threshold, or "
                        "the hyperparameters threshold null and energy 0.01")
    return vectors[:, :count], share


def _empty(values: np.ndarray, share: float, energy: float, threshold: float | None) -> str:
    if threshold is None:
        return (f"the direction that keys use least holds {100 * share:.2g} % of their energy, and "
                f"the null space may hold {100 * energy:.2g} %; raise the hyperparameter energy")
    return (f"no eigenvalue of the second moment is below the threshold {threshold}: they go from "
            f"{values[0]:.3g} to {values[-1]:.3g}, with a median of {np.median(values):.3g}; raise "
            "the hyperparameter threshold, or give null and the hyperparameter energy")


ALPHAEDIT = Method("alphaedit", alphaedit, PRESETS, sampled_templates,
                   elsewhere={"threshold": None, **_BY_ENERGY}, before_norm=BEFORE_NORM,
                   equations=inside_null_space, protects=True)
