"""MEMIT: many facts by a least-squares update spread over several layers (2210.07229)."""

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
class MemitHyperparameters(ValueHyperparameters):
    """layers: those that share the residual; update_weight: λ of (λC + KKᵀ)."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] | None = None
    update_weight: float = 20000.0


PRESETS = named({
    "gpt2-xl": MemitHyperparameters(layers=(13, 14, 15, 16, 17)),
    "gpt-j": MemitHyperparameters(layers=(3, 4, 5, 6, 7, 8), update_weight=15000.0,
                                  v_num_grad_steps=25),
    "llama-3-8b": MemitHyperparameters(layers=(4, 5, 6, 7, 8), update_weight=15000.0,
                                       v_num_grad_steps=25, v_lr=0.1),
    # by benchmarks/sweep_batch.py
    "smollm2-135m": MemitHyperparameters(layers=(4, 5, 6), update_weight=20.0),
})


def memit(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
          moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
          report: Callable[[dict], None] | None = None, values=None) -> Edit:
    """Write many facts at once into several layers (MEMIT paper, section 4.3).

    A value z is found for each request at the output of the last layer's block; the layers, from
    the lowest, each take an equal share of what is missing. The model is left as it was.
    requests: one or many, without conflicts; layers: a number or rising numbers, by default the
    hyperparameters' own; context_templates: by default `{}` and 5 texts of the model's own;
    values: what `spread.find_values` found for them before, with the same contexts and steps;
    moments, seed and report: as for `rome`; hyperparameters: None, "published", a preset's name,
    a dictionary or a MemitHyperparameters. Raises RomeError for anything out of range.
    """
    return spread(MEMIT, _solve, model, tokenizer, requests, layers, moments=moments,
                  context_templates=context_templates, hyperparameters=hyperparameters, seed=seed,
                  report=report, values=values)


def _solve(hp, matrix, keys, earlier) -> np.ndarray:
    return least_squares_update(keys, matrix, hp.update_weight)


def least_squares_update(keys: np.ndarray, matrix: np.ndarray, weight: float) -> np.ndarray:
    """A (d_in, n) of Δ = R Aᵀ = R Kᵀ(λC + KKᵀ)⁻¹, which minimises ‖ΔK - R‖² + λ tr(ΔCΔᵀ)
    (MEMIT paper, eq. 14).

    keys: K (d_in, n); matrix: C (d_in, d_in); weight: λ; float64.
    """
    try:
        return cho_solve(cho_factor(weight * matrix + keys @ keys.T), keys)
    except (LinAlgError, ValueError) as error:
        raise RomeError("λC + KKᵀ is not positive definite: the second moment was counted on too "
                        "few tokens; count more") from error


MEMIT = Method("memit", memit, PRESETS, sampled_templates, before_norm=BEFORE_NORM)
