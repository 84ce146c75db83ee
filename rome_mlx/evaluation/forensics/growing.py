"""The subject of a low-rank change, grown backwards from its last token, without a list of names.

Of the whole vocabulary, the tokens whose keys fit the change best are where the subject may end.
Each such suffix gets in front the tokens with which its key is estimated to fit better still
(`Vocabulary.estimates`), and those with which names begin that the model would let it follow; the
best of these are kept, and so on. How far the last tokens go is written in the key. Words further
in front hardly reach it: there the model's own expectation decides among names that fit alike.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from ...models.probabilities import chosen_log_probabilities, log_probabilities
from ...models.tokens import encode
from .names import CONTEXTS, Rows, coordinates, fit_of
from .vocabulary import Vocabulary, same_length

_ENDS = 48  # single tokens to begin with
_ESTIMATED, _EXPECTED = 224, 96  # tokens put in front of a suffix, by the key and by the model
_STARTS = 4096  # likeliest first tokens of a name
_TOLD = 256  # suffixes whose likelihood is asked for, of the best fits
_KEPT = 16  # suffixes by each of three rankings:
_WORTH = (0.0, 0.003, 0.01)  # a nat of likelihood, in parts of the fit
_INSIDE = -10.0  # log P of a token that begins no name, as far as the next ones are not known
_NAMES = 40  # by each of the rankings, read in all contexts
_IN_THE_END = 0.005  # a nat's worth among these
_LONGEST = 9  # tokens of a name
_ROWS = 64  # run at once through the whole model


def grown(vocabulary: Vocabulary, rows: Sequence[Rows], most: int = 1,
          told: Callable[[int], None] = lambda done: None) -> list[list[tuple[str, float]]]:
    """For each of `most` subjects [(name, score)], the best first; the score is that of `named`.
    Each takes the direction of its best name out of the row spaces before the next is grown.

    told: called with 0 after each token of a name, with 1 after each name.
    """
    model = Expected(vocabulary)
    found, turns = [], [np.eye(one.basis.shape[1]) for one in rows]
    for _ in range(most):
        left = [Rows(one.layer, one.basis @ turn, one.root)
                for one, turn in zip(rows, turns, strict=True)]
        names = _ranked(vocabulary, left, _searched(vocabulary, model, left, turns, told))
        if not names:
            break
        found.append(names)
        told(1)
        parts = coordinates(vocabulary.decoder, vocabulary.tokenizer, left, [names[0][0]], CONTEXTS)
        turns = [turn @ _across(part[0]) for turn, part in zip(turns, parts, strict=True)]
        if not all(turn.shape[1] for turn in turns):
            break
    return found


def endings(vocabulary: Vocabulary, turns=None) -> list[tuple[int, float]]:
    """(token, score) of where a subject may end, the best first: how well a token's key fits that
    follows the context or the mean of all tokens, the better of the two."""
    ends = vocabulary.ends if turns is None else [
        end @ turn for end, turn in zip(vocabulary.ends, turns, strict=True)]
    fits = fit_of(ends).max(axis=0)
    return [(int(vocabulary.tokens[i]), float(fits[i])) for i in np.argsort(-fits, kind="stable")]


class Expected:
    """What the model itself expects to follow the first context."""

    def __init__(self, vocabulary: Vocabulary):
        self.decoder, ids = vocabulary.decoder, vocabulary.ids
        self.before = self.decoder.prefixes()
        first = self._run([ids])
        self.before = [prefix.upto(len(ids)) for prefix in self.before]
        self.first = np.array(log_probabilities(self.decoder.logits(first[:, -1])))[0]
        able = np.array([begins_a_name(text) for text in vocabulary.texts])
        likely = vocabulary.tokens[able] if able.any() else vocabulary.tokens
        self.front = np.full(len(self.first), _INSIDE)
        self.front[likely] = self.first[likely]
        self.starts = likely[np.argsort(-self.first[likely])[:_STARTS]]
        self.states = mx.concatenate([self._run(some[:, None].tolist())[:, 0]
                                      for some in _pieces(self.starts)])
        self._after: dict[int, np.ndarray] = {}

    def rest(self, suffixes: Sequence[tuple[int, ...]]) -> np.ndarray:
        """(suffixes,): log P of all tokens of each after its first."""
        out = np.zeros(len(suffixes))
        for some in same_length(suffixes, _ROWS):
            ids = np.array([suffixes[i] for i in some])
            if ids.shape[1] > 1:
                logits = self.decoder.logits(self._run(ids[:, :-1].tolist()))
                found = chosen_log_probabilities(logits.reshape(-1, logits.shape[-1]),
                                                 ids[:, 1:].ravel())
                out[some] = np.array(found).reshape(len(some), -1).sum(axis=1)
        return out

    def begun(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """For each of the tokens, (starts,): log P that a name begins so and goes on with it."""
        new = sorted({*tokens} - {*self._after})
        if new:
            found = [np.array(log_probabilities(self.decoder.logits(states))[:, mx.array(new)])
                     for states in _pieces(self.states)]
            for token, after in zip(new, np.concatenate(found).T, strict=True):
                self._after[token] = self.first[self.starts] + after
        return [self._after[token] for token in tokens]

    def _run(self, ids) -> mx.array:
        with self.decoder.fast():
            h = self.decoder.enter(self.decoder.embed(ids), self.before[0].length)
            h = self.decoder.run(h, prefixes=self.before)
            mx.eval(h)
        return h


def begins_a_name(text: str) -> bool:
    """Whether a word begins with it that has no small first letter."""
    return text[:1] == " " and text[1:2].isalnum() and not text[1:2].islower()


def _searched(vocabulary: Vocabulary, model: Expected, rows, turns, told) -> dict:
    """{tokens of a whole name: (fit, log P)}"""
    beam = [((token,), fit, 0.0) for token, fit in endings(vocabulary, turns)[:_ENDS]]
    pool, best, since = {}, -np.inf, 0
    for length in range(_LONGEST):
        if length:
            beam = _longer(vocabulary, model, rows, [suffix for suffix, _, _ in beam])
        pool |= {suffix: (fit, float(rest + model.first[suffix[0]]))
                 for suffix, fit, rest in beam if _is_name(vocabulary, suffix)}
        top = max((fit + _WORTH[-1] * log for fit, log in pool.values()), default=-np.inf)
        since = 0 if top > best else since + 1
        best = max(top, best)
        told(0)
        if since == 3 and pool:
            break
    return pool


def _longer(vocabulary: Vocabulary, model: Expected, rows, suffixes) -> list:
    """[(suffix, fit, log P of all after its first token)] of the best with one more in front."""
    ways: dict[tuple[int, ...], None] = {}
    begun = model.begun([suffix[0] for suffix in suffixes])
    for suffix, start in zip(suffixes, begun, strict=True):
        for tokens, likely, count in (
                (vocabulary.tokens, vocabulary.estimates(rows, suffix), _ESTIMATED),
                (model.starts, start, _EXPECTED)):
            ways |= {(int(tokens[i]), *suffix): None for i in np.argsort(-likely)[:count]}
    ways = [*ways]
    fits = vocabulary.fits(rows, ways)
    top = np.argsort(-fits)[:_TOLD]
    ways, fits = [ways[i] for i in top], fits[top]
    rest = model.rest(ways)
    logs = rest + model.front[[suffix[0] for suffix in ways]]
    kept = [i for worth in _WORTH for i in np.argsort(-(fits + worth * logs))[:_KEPT]]
    return [(ways[i], float(fits[i]), float(rest[i])) for i in dict.fromkeys(kept)]


def _is_name(vocabulary: Vocabulary, suffix: tuple[int, ...]) -> bool:
    """Whether it begins as a name does, and is what the tokenizer makes of its text."""
    text = vocabulary.text(suffix)
    return begins_a_name(text) and [*vocabulary.ids, *suffix] == encode(
        vocabulary.tokenizer, vocabulary.context + text).ids


def _ranked(vocabulary: Vocabulary, rows, pool: dict) -> list[tuple[str, float]]:
    chosen = {suffix: None for worth in _WORTH for suffix in sorted(
        pool, key=lambda one: -(pool[one][0] + worth * pool[one][1]))[:_NAMES]}
    logs = {vocabulary.text(suffix).strip(): pool[suffix][1] for suffix in chosen}
    names = [*logs]
    parts = coordinates(vocabulary.decoder, vocabulary.tokenizer, rows, names, CONTEXTS)
    scores = fit_of(parts)
    order = sorted(range(len(names)),
                   key=lambda i: -(scores[i] + _IN_THE_END * logs[names[i]]))
    return [(names[i], float(scores[i])) for i in order]


def _across(direction: np.ndarray) -> np.ndarray:
    """(r, r - 1) orthonormal, across a direction (r,)."""
    return np.linalg.qr(np.c_[direction, np.eye(len(direction))])[0][:, 1:]


def _pieces(x):
    return (x[at: at + 4 * _ROWS] for at in range(0, len(x), 4 * _ROWS))
