"""Whose keys a low-rank change answers to.

ROME and MEMIT write ΔW = R Kᵀ C⁻¹ up to a factor between, so the change's row space is that of
C⁻¹K. With C = L Lᵀ, the rows times L span the same space as the whitened keys L⁻¹K. A subject's
key is in it, up to the contexts that it was read in; a key that has nothing to do with the change
is at its angle by chance. Subjects are found one after the other, each taking its direction out of
what is left (orthogonal matching pursuit).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from ...editing.key import Places, keys_by_layer, read_keys
from ...errors import RomeError
from ...models.decoder import Decoder
from ...storage.fact_set import read_fact_set
from ...storage.places import read_lines

#: the subject is asked for behind these words: first the first, for all candidates
CONTEXTS = ("People often speak of {}", "{}", "The book is about {}", "Yesterday we saw {}",
            "What do you know of {}", "It was written that {}", "The history of {}",
            "According to the report, {}", "It was a long day. {}", "He said no. {}",
            "The weather is fine. {}", "This is how it began. {}", "First of all, thank you. {}",
            "See the next page. {}", "They went home early. {}", "We do not know why. {}")
_SHORTLIST = 64  # candidates read in all contexts
_ROWS = 128  # texts run at once
_WORDS = 5000  # of the tokenizer's own, where no subjects are given
_RIDGE = 1e-3  # of C's mean variance, added to each


@dataclass(frozen=True)
class Name:
    """subject; score: the cosine of its whitened key with what is left of the change's row space,
    mean over layers; chance: the best score of candidates that were not named."""

    subject: str
    score: float
    chance: float


@dataclass(frozen=True)
class Rows:
    """The whitened row space of one layer's change. basis (d_in, r), orthonormal; root: L."""

    layer: int
    basis: np.ndarray = field(repr=False)
    root: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, layer: int, right: np.ndarray, c: np.ndarray) -> "Rows":
        """right (d_in, r): the change's right singular vectors; c (d_in, d_in): C."""
        root = np.array(c, order="F")  # of wide keys C takes most of the memory: one copy
        root.flat[:: len(c) + 1] += _RIDGE * np.trace(c) / len(c)
        root = scipy.linalg.cholesky(root, lower=True, overwrite_a=True)
        return cls(layer, np.linalg.qr(root.T @ right)[0], root)

    def coordinates(self, keys: np.ndarray) -> np.ndarray:
        """(n, r) of keys (n, d_in), in the row space and in parts of their whitened lengths."""
        white = scipy.linalg.solve_triangular(self.root, keys.T, lower=True)
        return (white.T @ self.basis) / np.linalg.norm(white, axis=0)[:, None]


def named(model, tokenizer, rows: Sequence[Rows], subjects: Sequence[str], most: int,
          told: Callable[[int], None] = lambda done: None, first=None) -> list[Name]:
    """The subjects that explain the row spaces, the best first, `most` at most.

    model: without the change; told: called with how many candidates were read; first:
    `coordinates` of all subjects in the first context, where they are at hand.
    """
    decoder = Decoder(model)
    if first is None:
        first = coordinates(decoder, tokenizer, rows, subjects, CONTEXTS[:1], told)
    found = _pursued(first, min(len(subjects), max(_SHORTLIST, 8 * most)))
    short = [subjects[i] for i, _ in found]
    picked = _pursued(coordinates(decoder, tokenizer, rows, short, CONTEXTS), len(short))
    scores = [score for _, score in picked]
    return [Name(short[i], score, max(scores[most:], default=0.0))
            for i, score in picked[:most]]


def coordinates(decoder: Decoder, tokenizer, rows: Sequence[Rows], subjects: Sequence[str],
                contexts: Sequence[str], told=lambda done: None) -> list[np.ndarray]:
    """For each layer (n, r): of the mean of a subject's keys over the contexts."""
    out = [np.zeros((len(subjects), one.basis.shape[1])) for one in rows]
    layers = [one.layer for one in rows]
    done = 0
    for some in by_length(subjects):
        places = [Places.subjects(tokenizer, [in_context(subjects[i], context) for i in some])
                  for context in contexts]
        for layer, keys in keys_by_layer(decoder, places, layers):
            at = layers.index(layer)
            out[at][some] = rows[at].coordinates(np.mean(np.float64(keys), axis=0))
        done += len(some)
        told(done)
    return out


def fit_of(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(n,): how much of the keys with these `coordinates` is in the row spaces, mean over them."""
    return np.mean([np.linalg.norm(part, axis=-1) for part in parts], axis=0)


def by_length(subjects: Sequence[str]) -> Iterator[list[int]]:
    """Indices of subjects to run at once, the shortest first."""
    order = sorted(range(len(subjects)), key=lambda i: len(subjects[i]))
    return (order[at: at + _ROWS] for at in range(0, len(order), _ROWS))


def subject_keys(decoder: Decoder, tokenizer, subjects, context: str, layer: int) -> np.ndarray:
    """(subjects, d_in) float64, in one context."""
    return read_keys(decoder, tokenizer, [in_context(one, context) for one in subjects],
                     layer).keys


def in_context(subject: str, context: str) -> tuple[str, tuple[int, int]]:
    """A text, and where the subject stands in it."""
    start = context.index("{}")
    return context.replace("{}", subject), (start, start + len(subject))


def _pursued(parts: list[np.ndarray], most: int) -> list[tuple[int, float]]:
    """(candidate, score) one after the other: the best of what is left of each row space, which
    then loses that candidate's direction. Where nothing is left, the rest by what they had."""
    left = [part.copy() for part in parts]
    whole = fit_of(parts)
    found, free = [], np.ones(len(whole), bool)
    for _ in range(min(most, max(part.shape[1] for part in parts))):
        scores = fit_of(left)
        best = int(np.argmax(np.where(free, scores, -1)))
        free[best] = False
        found.append((best, float(scores[best])))
        for part in left:
            length = np.linalg.norm(part[best])
            if length > 0:
                direction = part[best] / length
                part -= np.outer(part @ direction, direction)
    rest = [i for i in np.argsort(-whole) if free[i]]
    return [*found, *((int(i), float(whole[i])) for i in rest)][:most]


def candidates(tokenizer, subjects: Sequence[str] | None, least: int = 1) -> list[str]:
    """The subjects given, else names of our own facts, well-known subjects, and words of the
    tokenizer; each once. Raises RomeError for fewer than `least`."""
    if subjects is None:
        subjects = [*(subject for relation in read_fact_set() for subject, _ in relation.facts),
                    *read_lines("subjects.txt"), *_own_words(tokenizer, _WORDS)]
    found = [one for one in dict.fromkeys(subjects) if one.strip()]
    if len(found) < least:
        raise RomeError(f"there are {len(found)} subjects to look for; give {least} or more")
    return found


def _own_words(tokenizer, count: int) -> list[str]:
    """Whole words of the tokenizer's vocabulary that begin with a capital letter."""
    found = []
    for token in range(len(tokenizer)):
        word = tokenizer.decode([token])
        if word[:1] == " " and word[1:].isalpha() and word[1:2].isupper() and len(word) > 3:
            found.append(word[1:])
    return found[:count]

