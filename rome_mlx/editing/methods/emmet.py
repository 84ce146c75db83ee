"""EMMET: many facts by an update that holds them exactly, ROME for a batch (2403.14236)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ...errors import RomeError
from ...facts import EditRequest
from ..edit import Edit
from ..hyperparameters import ValueHyperparameters, named
from ..method import Method
from ..spread import BEFORE_NORM, sampled_templates, spread


@dataclass(frozen=True)
class EmmetHyperparameters(ValueHyperparameters):
    """moment_scale: what C is multiplied by; ridge: added to KᵀC⁻¹K for more than one request."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] | None = None
    moment_scale: float = 1000.0
    ridge: float = 0.1


PRESETS = named({
    "gpt2-xl": EmmetHyperparameters(layers=(17,)),
    "gpt-j": EmmetHyperparameters(layers=(5,), moment_scale=1.0),
    "llama-2-7b": EmmetHyperparameters(layers=(5,), moment_scale=1.0, clamp_norm_factor=4.0),
    "smollm2-135m": EmmetHyperparameters(layers=(6,)),  # by benchmarks/sweep_batch.py
})


def emmet(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
          moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
          report: Callable[[dict], None] | None = None, values=None) -> Edit:
    """Write many facts at once with an equality constraint for each (EMMET paper, section 4).

    Arguments as for `memit`; hyperparameters: an EmmetHyperparameters, its preset's name, a
    dictionary or None. The model is left as it was.
    """
    return spread(EMMET, model, tokenizer, requests, layers, moments=moments,
                  context_templates=context_templates, hyperparameters=hyperparameters, seed=seed,
                  report=report, values=values)


@dataclass(frozen=True)
class Constraints:
    """An equality for every key of a batch; earlier batches have none."""

    hp: EmmetHyperparameters
    matrix: np.ndarray

    def update(self, keys: np.ndarray) -> np.ndarray:
        """A (d_in, n) of Δ = R Aᵀ."""
        return equality_update(keys, self.hp.moment_scale * self.matrix,
                               self.hp.ridge if keys.shape[1] > 1 else 0.0)


def equality_update(keys: np.ndarray, matrix: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """A (d_in, n) of Δ = R Aᵀ = R (KᵀC⁻¹K + ridge I)⁻¹ KᵀC⁻¹. Without a ridge ΔK = R, and Δ is
    the smallest such in tr(ΔCΔᵀ) (EMMET paper, eq. 9).

    keys: K (d_in, n); matrix: C (d_in, d_in); float64.
    """
    try:
        solved = cho_solve(cho_factor(matrix), keys)  # C⁻¹K
        gram = keys.T @ solved + ridge * np.eye(keys.shape[1])
        return cho_solve(cho_factor(gram), solved.T).T
    except (LinAlgError, ValueError) as error:
        raise RomeError("the second moment is not positive definite, or two requests have one "
                        "key; count more tokens, or raise the hyperparameter ridge") from error


EMMET = Method("emmet", emmet, PRESETS, sampled_templates, before_norm=BEFORE_NORM,
               equations=lambda hp, matrix: (Constraints(hp, matrix), {}))
