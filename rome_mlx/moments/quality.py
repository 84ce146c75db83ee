"""Are these enough tokens? How C⁻¹k settles, and the shape of C."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigvalsh

from ..models.decoder import Decoder
from ..models.tokens import encode
from ..storage.places import read_lines
from .keys import layer_keys
from .second_moment import SecondMoment, symmetric

#: below this many tokens a dimension, C⁻¹k is mostly noise
THIN = 10
_SUBJECTS = 64


@dataclass(frozen=True)
class Quality:
    """What a second moment is worth.

    tokens_per_dimension: tokens over width; effective_rank: exp of the entropy of C's eigenvalues
    over their sum, 1 to width; condition: the largest eigenvalue over the smallest, inf where
    that is not above 0; mean_share: ‖E k‖² / E‖k‖², 0 for centred keys, 1 for keys that are all
    one; settling: [{"tokens", "cosine"}], how well the directions C⁻¹k of two halves of so many
    tokens agree, mean over well-known subjects' keys k.
    """

    tokens_per_dimension: float
    effective_rank: float
    condition: float
    mean_share: float
    settling: list[dict]

    @property
    def thin(self) -> bool:
        return self.tokens_per_dimension < THIN

    def advice(self, dim: int) -> str | None:
        """What to do about a matrix that is too thin, or None."""
        if not self.thin:
            return None
        return (f"thin: {self.tokens_per_dimension:.1f} tokens a dimension; count {THIN * dim:,} "
                "or more, or edit with the hyperparameter ridge, such as 1e-2")


def quality(moment: SecondMoment, about: dict) -> Quality:
    """The Quality of a moment, with what `about` says of how it settled. Takes 8 dim² bytes."""
    matrix = moment.value()
    trace = float(np.trace(matrix))
    values = eigvalsh(matrix.T, overwrite_a=True, check_finite=False)
    share = values[values > 0] / values[values > 0].sum()
    return Quality(
        tokens_per_dimension=moment.count / moment.dim,
        effective_rank=float(np.exp(-(share * np.log(share)).sum())),
        condition=float(values[-1] / values[0]) if values[0] > 0 else float("inf"),
        mean_share=float(moment.mean() @ moment.mean()) / trace,
        settling=about.get("settling", []))


def subject_keys(decoder: Decoder, tokenizer, layer: int) -> np.ndarray:
    """(64, dim) float64: keys of well-known subjects, each at its last token."""
    subjects = [encode(tokenizer, text).ids for text in read_lines("subjects.txt")[:_SUBJECTS]]
    width = max(map(len, subjects))
    (_, keys), = layer_keys(decoder, [ids + [0] * (width - len(ids)) for ids in subjects], [layer])
    last = keys[mx.arange(len(subjects)), mx.array([len(ids) - 1 for ids in subjects])]
    return np.array(last.astype(mx.float32), np.float64)


def agreement(moment: SecondMoment, keys: np.ndarray) -> float | None:
    """Mean cosine of C⁻¹k between the sums in `moment.first` and those since, over `keys` (n, dim).

    None where one of the two is not positive definite. Takes 8 dim² bytes at a time.
    """
    ours = _directions(moment.first.total(moment.dim), keys)
    since = moment.first.total(moment.dim)
    others = _directions(np.subtract(moment.total, since, out=since), keys)
    if ours is None or others is None:
        return None
    return float((ours * others).sum(axis=0).mean())


def _directions(total: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """C⁻¹k / ‖C⁻¹k‖, (dim, n), of an upper triangle, which is overwritten."""
    try:
        factor = cho_factor(symmetric(total).T, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    solved = cho_solve(factor, keys.T)
    return solved / np.linalg.norm(solved, axis=0)
