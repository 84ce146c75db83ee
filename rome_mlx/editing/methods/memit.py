"""MEMIT: many facts by a least-squares update spread over several layers (2210.07229)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...facts import EditRequest
from ..edit import Edit
from ..hyperparameters import ValueHyperparameters, named
from ..least_squares import LeastSquares
from ..method import Method
from ..spread import BEFORE_NORM, sampled_templates, spread


@dataclass(frozen=True)
class MemitHyperparameters(ValueHyperparameters):
    """layers: those that share the residual; update_weight: λ of (λC + KKᵀ); anchor: 1 for values z
    as long as the unedited model's, for long sequences (see `spread`)."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] | None = None
    update_weight: float = 20000.0
    anchor: float = 0.0


PRESETS = named({
    "gpt2-xl": MemitHyperparameters(layers=(13, 14, 15, 16, 17)),
    "gpt-j": MemitHyperparameters(layers=(3, 4, 5, 6, 7, 8), update_weight=15000.0,
                                  v_num_grad_steps=25),
    "llama-3-8b": MemitHyperparameters(layers=(4, 5, 6, 7, 8), update_weight=15000.0,
                                       v_num_grad_steps=25, v_lr=0.1),
    # by benchmarks/sweep_batch.py
    "smollm2-135m": MemitHyperparameters(layers=(4, 5, 6), update_weight=20.0),
})
_AUTHORS = {"gpt2-xl", "gpt-j", "llama-3-8b"}
_LAMBDA_BY_WIDTH = 0.65  # measured on the default model: 1,000 for 1,536 (docs/sequences.md)


def memit(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
          moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
          report: Callable[[dict], None] | None = None, earlier: Sequence[Edit] = (),
          values=None, written=None) -> Edit:
    """Write many facts at once into several layers (MEMIT paper, section 4.3).

    A value z is found for each request at the output of the last layer's block; the layers, from
    the lowest, each take an equal share of what is missing. The model is left as it was.
    requests: one or many, without conflicts; layers: a number or rising numbers, by default the
    hyperparameters' own; context_templates: by default `{}` and 5 texts of the model's own;
    earlier: edits whose facts are to stay, such as loaded ones; those applied to the model count
    without being named; values: what `spread.find_values` found for the requests before, with the
    same contexts and steps; written: {module path: LeastSquares} of a sequence, in place of
    `earlier`;
    moments, seed and report: as for `rome`; hyperparameters: None, "published", a preset's name,
    a dictionary or a MemitHyperparameters. Raises RomeError for anything out of range.
    """
    return spread(MEMIT, model, tokenizer, requests, layers, moments=moments,
                  context_templates=context_templates, hyperparameters=hyperparameters, seed=seed,
                  report=report, earlier=earlier, values=values, written=written)


def weighted(hp: MemitHyperparameters, matrix: np.ndarray) -> tuple[LeastSquares, dict]:
    """The least squares whose Δ = R Kᵀ(λC + KKᵀ)⁻¹ minimises ‖ΔK - R‖² + λ tr(ΔCΔᵀ)
    (MEMIT paper, eq. 14). matrix: C (d_in, d_in) float64."""
    return LeastSquares(hp.update_weight * matrix), {}


def in_a_row(own: MemitHyperparameters, width: int) -> MemitHyperparameters:
    """The hyperparameters of a sequence of hundreds, where the authors gave none: short values, and
    a λ in proportion to the keys' width, as the authors' are (15,000 for 14,336 and 16,384)."""
    if own.preset in _AUTHORS:
        return own
    return replace(own, v_rule="ball", v_num_grad_steps=10, v_lr=0.7, v_stop=0.3,
                   clamp_norm_factor=own.clamp_norm_factor / 1.5,
                   update_weight=float(round(_LAMBDA_BY_WIDTH * width)),
                   preset=f"{own.preset}, in a row")


MEMIT = Method("memit", memit, PRESETS, sampled_templates, before_norm=BEFORE_NORM,
               equations=weighted, protects=True, in_a_row=in_a_row)
