"""AlphaEdit: updates in the null space of what the model knows (2410.02355)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

from ...errors import RomeError
from ...facts import EditRequest
from ...models.applied import edits_of
from ..edit import Edit
from ..hyperparameters import ValueHyperparameters, named
from ..method import Method
from ..spread import sampled_templates, spread


@dataclass(frozen=True)
class AlphaEditHyperparameters(ValueHyperparameters):
    """threshold: keys may only change along directions where C's eigenvalue is below it;
    regularization: λ, against large updates."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] | None = None
    threshold: float = 0.02
    regularization: float = 10.0


PRESETS = named({
    "gpt2-xl": AlphaEditHyperparameters(layers=(13, 14, 15, 16, 17)),
    "gpt-j": AlphaEditHyperparameters(layers=(3, 4, 5, 6, 7, 8), v_num_grad_steps=25),
    "llama-3-8b": AlphaEditHyperparameters(layers=(4, 5, 6, 7, 8), v_num_grad_steps=25, v_lr=0.1),
    "smollm2-135m": AlphaEditHyperparameters(layers=(4, 5, 6)),  # by benchmarks/sweep_batch.py
})


def alphaedit(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
              moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
              report: Callable[[dict], None] | None = None,
              earlier: Sequence[Edit] = ()) -> Edit:
    """Write many facts at once, along directions that other keys hardly use, without undoing
    earlier batches (AlphaEdit paper, section 3).

    earlier: edits whose facts are to stay, such as loaded ones; those applied to the model count
    without being named. Other arguments as for `memit`; hyperparameters: an
    AlphaEditHyperparameters, its preset's name, a dictionary or None. The model is left as it was.
    """
    applied = edits_of(model)
    return spread(ALPHAEDIT, _solve, model, tokenizer, requests, layers, moments=moments,
                  context_templates=context_templates, hyperparameters=hyperparameters, seed=seed,
                  report=report,
                  earlier=[*applied, *(e for e in earlier if not any(e is a for a in applied))])


def _solve(hp, matrix, keys, earlier) -> np.ndarray:
    return null_space_update(keys, earlier, null_space(matrix, hp.threshold), hp.regularization)


def null_space(matrix: np.ndarray, threshold: float) -> np.ndarray:
    """U (d_in, k): C's eigenvectors with eigenvalues below the threshold; P = U Uᵀ.

    Raises RomeError, with the range of the eigenvalues, where there are none.
    """
    values, vectors = eigh(matrix)
    if not (below := values < threshold).any():
        raise RomeError(f"no eigenvalue of the second moment is below the threshold {threshold}: "
                        f"they go from {values[0]:.3g} to {values[-1]:.3g}, with a median of "
                        f"{np.median(values):.3g}; raise the hyperparameter threshold")
    return vectors[:, below]


def null_space_update(keys, earlier, basis, weight: float) -> np.ndarray:
    """A (d_in, n) of Δ = R Aᵀ, where (P(KKᵀ + K_pK_pᵀ) + λI) A = P K (AlphaEdit paper, eq. 14).

    keys: K (d_in, n); earlier: K_p (d_in, m); basis: U (d_in, k) with P = U Uᵀ; weight: λ.
    With G = P [K K_p], A is the first n columns of (GGᵀ + λI)⁻¹G = G(GᵀG + λI)⁻¹: a system as
    large as the number of keys.
    """
    inside = basis.T @ np.concatenate([keys, earlier], axis=1)  # Uᵀ[K K_p], (k, n + m)
    gram = inside.T @ inside + weight * np.eye(inside.shape[1])
    picked = np.eye(inside.shape[1])[:, : keys.shape[1]]
    return basis @ (inside @ cho_solve(cho_factor(gram), picked))


ALPHAEDIT = Method("alphaedit", alphaedit, PRESETS, sampled_templates)
