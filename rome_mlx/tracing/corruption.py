"""The noise that hides the subject (ROME paper, section 2.1 and appendix B).

A rule is a short text: `s3` three times the standard deviation of subject embeddings, `0.35` that
level, `u0.35` uniform, `m` the embeddings' own mean and covariance, `t5` the same with heavy tails.
"""

import re
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.tokens import encode, unwrapped
from ..storage.places import read_lines

RULES = "s3 (times the subjects' standard deviation), 0.35, u0.35, m, t5"
_NUMBER = r"\d+\.?\d*(?:e-?\d+)?|\.\d+"


@dataclass(frozen=True)
class Corruption:
    """A rule with its parameters found for one model.

    kind: gaussian, uniform, embedding or heavy; level: factor of the first two; degrees: of
    freedom, of heavy; mean (dim,) and root (dim, dim), root @ root.T the covariance, of the last
    two; replace: the noise stands in place of the embedding.
    """

    rule: str
    kind: str
    level: float | None = None
    degrees: float | None = None
    mean: np.ndarray | None = None
    root: np.ndarray | None = None
    replace: bool = False

    def noise(self, samples: int, tokens: int, dim: int, seed: int = 1) -> np.ndarray:
        """(samples, tokens, dim) float64, the same at every call: the released code re-creates
        its generator for every forward pass, so that all cells of a map see the same noise."""
        random = np.random.RandomState(seed)
        if self.kind == "uniform":
            return random.uniform(-1, 1, (samples, tokens, dim)) * self.level
        draw = random.randn(samples, tokens, dim)
        if self.kind == "gaussian":
            return draw * self.level
        draw = draw @ self.root.T + self.mean
        if self.kind == "heavy":
            chi = np.random.RandomState(seed + 1).chisquare(self.degrees, (samples, tokens, 1))
            draw *= np.sqrt((self.degrees - 2) / chi)
        return draw

    def apply(self, embeddings: mx.array, begin: int, end: int, samples: int, seed: int = 1):
        """Embeddings (1, tokens, dim) -> (samples, tokens, dim), noise at tokens [begin, end)."""
        noise = mx.array(self.noise(samples, end - begin, embeddings.shape[2], seed),
                         dtype=embeddings.dtype)
        rows = mx.repeat(embeddings, samples, axis=0)
        middle = noise if self.replace else rows[:, begin:end] + noise
        return mx.concatenate([rows[:, :begin], middle, rows[:, end:]], axis=1)


def parse_rule(rule: str | float) -> tuple[str, float | None]:
    """(letter, number) of a noise rule; the letter of a plain level is ''."""
    match = re.fullmatch(rf"([sut]?)({_NUMBER})|(m)", str(rule))
    if match is None or (match[1] == "t" and float(match[2]) <= 2):
        raise RomeError(f"noise rule {rule!r} is unknown; choose from {RULES}"
                        + (" (t needs more than 2 degrees)" if match else ""))
    return (match[3], None) if match[3] else (match[1], float(match[2]))


def corruption(decoder: Decoder, tokenizer, rule: str | float = "s3", *, subjects=None,
               replace: bool = False) -> Corruption:
    """The rule with its level or covariance found for this model.

    subjects: those whose embeddings calibrate `s`; by default a list that comes with the package
    (the paper takes its 1,209 known subjects). Raises RomeError for an unknown rule.
    """
    letter, number = parse_rule(rule)
    rule = str(rule)
    if letter == "":
        return Corruption(rule, "gaussian", number, replace=replace)
    if letter == "u":
        return Corruption(rule, "uniform", number, replace=replace)
    if letter == "s":
        level = number * embedding_std(decoder, tokenizer, subjects or read_lines("subjects.txt"))
        return Corruption(rule, "gaussian", level, replace=replace)
    mean, root = _embedding_distribution(decoder, tokenizer)
    kind = "embedding" if letter == "m" else "heavy"
    return Corruption(rule, kind, None, number, mean, root, replace)


def embedding_std(decoder: Decoder, tokenizer, subjects) -> float:
    """Standard deviation pooled over every number of the subjects' token embeddings, each subject
    tokenized on its own, with no space before it."""
    inner = unwrapped(tokenizer)
    ids = [i for s in subjects for i in inner.encode(s, add_special_tokens=False)]
    return float(np.std(np.array(decoder.embed([ids]).astype(mx.float32)), dtype=np.float64))


def _embedding_distribution(decoder, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Mean and a root of the covariance of embedding rows, as frequent as in a small text."""
    text = "\n".join([*read_lines("neutral.txt"), *read_lines("subjects.txt")])
    rows = np.array(decoder.embed([encode(tokenizer, text).ids])[0].astype(mx.float32), np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    return rows.mean(0), vectors * np.sqrt(np.maximum(values, 0))
