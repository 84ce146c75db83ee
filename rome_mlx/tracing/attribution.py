"""Attribution patching: maps of estimates at a fraction of a trace's cost, and what they miss.

`gradients.py` has the formulas. What is estimated is the change of the answer's log odds in each
noise sample. A gradient says little of how far a large change goes: a change x counts as asinh(x),
the same to second order, its logarithm beyond one. Scores are probabilities again, the mean over
samples of sigmoid(log odds + asinh(change)).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..facts import Fact
from .decision import scaled_window
from .gradients import Gradients
from .restore import numbers_a_token, window_cells
from .trace import KINDS, FactRuns, Trace, check_values

_SHARE = 0.03  # of the cells, recomputed exactly by `checked`
_OPEN = 9  # windows that a layer is in, at most, of those that are computed


def attribution(model, tokenizer, fact: Fact, *, kind: str = "hidden", window: int = 10,
                token_range: str | tuple[int, int] = "all", **options) -> Trace:
    """A Trace whose scores are estimates: from one clean run, one corrupted run and one backward
    pass (attribution patching, Kramár et al. 2403.00745).

        fast = rm.attribution(model, tokenizer, fact, kind="mlp")
        fast.scores, fast.exact                    # (tokens, layers), False

    options: samples, noise, replace, noise_seed and memory, as for `trace`. Hidden states are
    gradient times difference. A window's module outputs are stopped from counting twice, see
    `gradients.py`; of windows of ten and more layers every (window // 5)th is computed and those
    between are interpolated. How well estimates agree with exact maps is in docs/tracing.md; they
    fail where much changes at once, as hidden states do in low layers.

    The model is the same before and after. Raises RomeError for values out of range.
    """
    return attributions(model, tokenizer, fact, [kind], window=window, token_range=token_range,
                        **options)[kind]


def attributions(model, tokenizer, fact: Fact, kinds: Sequence[str] = KINDS, *, window: int = 10,
                 token_range: str | tuple[int, int] = "all", samples: int = 10,
                 **options) -> dict[str, Trace]:
    """{kind: Trace} as `attribution` gives them, all from the same runs and backward pass."""
    for kind in kinds:
        check_values(kind, samples, window, None)
    estimates = Estimates(FactRuns(model, tokenizer, fact, samples=samples, **options))
    return {kind: estimates.trace(kind, window, token_range) for kind in kinds}


class Estimates:
    """Estimated traces from a fact's clean and corrupted runs; the backward pass is shared."""

    def __init__(self, runs: FactRuns):
        self.runs = runs

    def trace(self, kind: str, window: int, token_range: str | tuple[int, int]) -> Trace:
        """The estimated trace of one kind."""
        found = self.scores(kind, window, token_range)
        return self.runs.described(kind, None, window, token_range, found, self.deciding,
                                   exact=False)

    def scores(self, kind: str, window: int,
               token_range: str | tuple[int, int]) -> np.ndarray:
        """(tokens, layers, samples) P(answer), the cells of the trace."""
        runs, begin = self.runs, self.runs.subject[0]
        positions = runs.positions(token_range)
        found = np.tile(runs.base, (len(positions), runs.layers, 1))  # (tokens, layers, samples)
        tokens = [position - begin for position in positions if position >= begin]
        if tokens:
            found[-len(tokens):] = self._probabilities(kind, window, tokens)
        return found

    @cached_property
    def deciding(self) -> np.ndarray:
        """(layers,) what the decisive layer is read from, estimated."""
        last = self.runs.subject[1] - 1 - self.runs.subject[0]
        return self._probabilities("mlp", scaled_window(self.runs.layers), [last])[0].mean(-1)

    @cached_property
    def _gradients(self) -> list[Gradients]:
        """Of groups of samples, as many at once as fit in memory."""
        runs = self.runs
        tokens, before = len(runs.ids) - runs.subject[0], len(runs.ids)
        new = runs.corrupted.prefixes[0].new
        numbers = numbers_a_token(runs.decoder) + 2 * before * sum(
            x.shape[1] * x.shape[3] for x in new)
        group = max(1, int(runs.memory * 1e9 / (4 * _OPEN * tokens * numbers)))
        return [Gradients(runs.decoder, runs.clean, runs.corrupted.part(slice(i, i + group)),
                          runs.answer) for i in range(0, runs.samples, group)]

    def _probabilities(self, kind: str, window: int, tokens: Sequence[int]) -> np.ndarray:
        """(tokens, layers, samples) P(answer); tokens count from the subject's first."""
        layers, found = self.runs.layers, []
        for part in self._gradients:
            if kind == "hidden":
                change = part.hidden(tokens)
            else:
                centers = sorted({*range(0, layers, max(1, window // 5)), layers - 1})
                cells = window_cells(layers, window)
                change = _between(part.windows(kind, [cells[i] for i in centers], tokens),
                                  centers, layers)
            found.append(_sigmoid(part.log_odds + np.arcsinh(change)))
        return np.concatenate(found, axis=-1)


@dataclass(frozen=True)
class Checked:
    """An estimated trace with exact scores put in where they matter.

    trace: that one; cells: [(position, layer)] that are exact; missed: (cells,) how far each
    estimate was off, in probability; before, after: the largest cell by the estimate alone and
    now.
    """

    trace: Trace
    cells: list[tuple[int, int]]
    missed: np.ndarray
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def told(self) -> str:
        """How much the estimate missed, in a sentence."""
        def at(cell):
            return f"layer {cell[1]} at {self.trace.tokens[cell[0]]!r}"

        largest = (f"the largest is still {at(self.after)}" if self.before == self.after else
                   f"the largest is {at(self.after)}, not {at(self.before)}")
        return (f"{len(self.cells)} cells recomputed exactly: the estimate was off by "
                f"{self.missed.mean():.3f} on average, at most {self.missed.max():.3f}; {largest}"
                + ("." if self.after in self.cells else ", itself an estimate."))

    def to_json(self) -> dict:
        return {"cells": [list(cell) for cell in self.cells],
                "mean_error": float(self.missed.mean()), "largest_error": float(self.missed.max()),
                "largest_before": list(self.before), "largest": list(self.after)}


def checked(runs: FactRuns, estimate: Trace) -> Checked:
    """Recompute the cells that matter with the exact staircase.

    These are the largest 3 % of the map, at least three, the largest at the subject's last token
    with its neighbors, and all that the decisive layer is read from: the cells of one token, and
    estimates do not name that layer well (docs/tracing.md).
    """
    scores, chosen = estimate.scores.copy(), cells_that_matter(estimate)
    for position in sorted({position for position, _ in chosen}):
        layers = [layer for at, layer in chosen if at == position]
        scores[estimate.positions.index(position), layers] = runs.restored(
            estimate.kind, estimate.window, position, layers)
    trace = replace(estimate, scores=scores, deciding=runs.deciding, deciding_exact=True)
    missed = np.array([abs(scores[row, layer] - estimate.scores[row, layer]) for row, layer in
                       ((estimate.positions.index(at), layer) for at, layer in chosen)])
    return Checked(trace, chosen, missed, _largest(estimate), _largest(trace))


def cells_that_matter(estimate: Trace) -> list[tuple[int, int]]:
    """[(position, layer)] that `checked` recomputes; before the subject nothing is estimated."""
    begin, end = estimate.subject_range
    cells = [(float(score), position, layer)
             for position, row in zip(estimate.positions, estimate.scores, strict=True)
             for layer, score in enumerate(row) if position >= begin]
    found = {cell[1:] for cell in sorted(cells, reverse=True)[:max(3, round(_SHARE * len(cells)))]}
    if end - 1 in estimate.positions:
        row = estimate.scores[estimate.positions.index(end - 1)]
        found |= {(end - 1, layer) for layer in _around(int(row.argmax()), len(row))}
    return sorted(found)


def _around(layer: int, layers: int) -> set[int]:
    return {at for at in (layer - 1, layer, layer + 1) if 0 <= at < layers}


def _largest(trace: Trace) -> tuple[int, int]:
    row, layer = np.unravel_index(int(trace.scores.argmax()), trace.scores.shape)
    return trace.positions[row], int(layer)


def _between(known: np.ndarray, centers: Sequence[int], layers: int) -> np.ndarray:
    """(tokens, centers, samples) -> (tokens, layers, samples), linear between the centers."""
    weights = np.stack([np.interp(range(layers), centers, row) for row in np.eye(len(centers))])
    return np.einsum("tcs,cl->tls", known, weights)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
