"""All cells of a tracing map at one token, as a staircase.

Restoring token t at layer l changes nothing before t and nothing below l: positions before t come
from the corrupted run's keys and values, layers below from its states. Every cell therefore joins
one growing batch at its own layer, and the batch runs through the layers above together. Rows are
ordered cell by cell, the noise samples of a cell next to each other.

Three things more need no arithmetic. In the first layer of a window only t itself changes. Windows
that begin at the same layer are one until the shorter ends. In the last layer only the last
position's MLP is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..models.decoder import Decoder
from ..models.hooks import hooked
from ..models.probabilities import chosen_log_probabilities, top_words
from .runs import Run


@dataclass(frozen=True)
class Cell:
    """Restore one token's state.

    start: the lowest layer that other tokens notice it in; restored: layers [first, last) whose
    module output is restored, empty where the state entering `start` is.
    """

    start: int
    restored: tuple[int, int]


def hidden_cells(layers: int) -> list[Cell]:
    """A cell a layer: that block's output is restored, so the next layer is the first to run."""
    return [Cell(layer + 1, (layer + 1, layer + 1)) for layer in range(layers)]


def window_cells(layers: int, window: int) -> list[Cell]:
    """A cell a layer: a module's output at layers [l - window // 2, l + (window + 1) // 2)."""
    cells = []
    for layer in range(layers):
        first = max(0, layer - window // 2)
        last = min(layers, layer + (window + 1) // 2)
        cells.append(Cell(first + 1, (first, last)))
    return cells


@dataclass(frozen=True)
class Join:
    """Cell number `cell` joins the batch below `layer`, as a copy of cell number `trunk`, which it
    was one with until there, or (None) with its own state."""

    layer: int
    cell: int
    trunk: int | None = None


def joins(cells: Sequence[Cell]) -> list[Join]:
    """When each cell joins, lowest layer first."""
    plan, trunks = [], {}
    for i in sorted(range(len(cells)), key=lambda i: cells[i].restored[1], reverse=True):
        cell = cells[i]
        trunk = trunks.setdefault(cell.start, i)
        if trunk != i and cell.restored[1] > cell.start:
            plan.append(Join(cell.restored[1], i, trunk))
        else:
            plan.append(Join(cell.start, i))
    return sorted(plan, key=lambda join: join.layer)


class Restoration:
    """Scores of cells: P(answer) of every noise sample, with the clean state put back.

    kind: hidden, mlp or attn; severed: None, or the kind of module whose output at the token is
    held at its corrupted value in every layer after the restored one; max_rows: rows a batch.
    """

    def __init__(self, decoder: Decoder, clean: Run, corrupted: Run, answer: int, kind: str,
                 severed: str | None = None, max_rows: int = 1 << 30):
        self.decoder, self.clean, self.corrupted = decoder, clean, corrupted
        self.answer, self.kind, self.severed = answer, kind, severed
        self.samples = corrupted.inputs[0].shape[0]
        self.cells_a_batch = max(1, max_rows // self.samples)

    def scores(self, token: int, cells: Sequence[Cell]) -> np.ndarray:
        """(cells, samples) float32, in the order of `cells`, for a token of the corrupted run."""
        out = np.empty((len(cells), self.samples), np.float32)
        for numbers, h in self._states(token, cells):
            out[numbers] = self.probabilities(h).reshape(-1, self.samples)
        return out

    def words(self, token: int, cells: Sequence[Cell],
              count: int) -> tuple[np.ndarray, list[list[tuple[int, float]]]]:
        """(`scores`, for every cell the `count` likeliest next words as `top_words` gives them,
        over the noise samples)."""
        out = np.empty((len(cells), self.samples), np.float32)
        words: list[list[tuple[int, float]]] = [[] for _ in cells]
        for numbers, h in self._states(token, cells):
            logits = self.decoder.logits(h)
            out[numbers] = self._answers(logits).reshape(-1, self.samples)
            for i, number in enumerate(numbers):
                words[number] = top_words(self._rows(logits, i), count)
        return out, words

    def _states(self, token: int, cells: Sequence[Cell]) -> Iterator[tuple[list[int], mx.array]]:
        """(numbers of cells, what the vocabulary is read from after them: (rows, dim)), a batch of
        cells after the other."""
        prefixes = self.corrupted.prefix(token)
        for i in range(0, len(cells), self.cells_a_batch):
            with self.decoder.fast():
                batch, h = self._staircase(token, cells[i: i + self.cells_a_batch], prefixes)
            yield [i + number for number in batch], h

    def _staircase(self, token: int, cells: Sequence[Cell],
                   prefixes) -> tuple[list[int], mx.array]:
        h, layers, plan = None, len(self.decoder.layers), joins(cells)
        batch: list[int] = []  # numbers of the cells in h, in order
        for layer in range(plan[0].layer, layers + 1):
            new = [] if h is None else [h]
            for join in (join for join in plan if join.layer == layer):
                new.append(self._entry(token, layer, prefixes) if join.trunk is None
                           else self._rows(h, batch.index(join.trunk)))
                batch.append(join.cell)
            h = mx.concatenate(new) if len(new) > 1 else new[0]
            if layer < layers:
                with self._hooks(token, layer, [cells[i] for i in batch], h.shape[1]):
                    h = self.decoder.block(layer, h, prefixes[layer])
                mx.async_eval(h)
        return batch, h[:, -1]

    def _rows(self, h: mx.array, number: int) -> mx.array:
        return h[number * self.samples: (number + 1) * self.samples]

    def probabilities(self, h: mx.array) -> np.ndarray:
        """P(answer) of final hidden states (rows, dim)."""
        return self._answers(self.decoder.logits(h))

    def _answers(self, logits: mx.array) -> np.ndarray:
        answers = mx.full(len(logits), self.answer)
        return np.array(mx.exp(chosen_log_probabilities(logits, answers)))

    def _entry(self, token: int, layer: int, prefixes) -> mx.array:
        """What enters `layer` at tokens >= token: corrupted, but for what restoring did to the
        token itself, which other tokens have not read yet."""
        at = token - self.corrupted.begin
        later = self.corrupted.inputs[layer][:, at + 1:]
        if self.kind == "hidden":
            clean = self.clean.inputs[layer][:, token: token + 1]
            one = mx.broadcast_to(clean, (self.samples, *clean.shape[1:]))
        else:
            below = layer - 1
            with self._hooks(token, below, [Cell(layer, (below, layer))], 1):
                one = self.decoder.block(below, self.corrupted.inputs[below][:, at: at + 1],
                                         prefixes[below])
        return mx.concatenate([one, later], axis=1)

    def _hooks(self, token: int, layer: int, cells: list[Cell], tokens: int) -> ExitStack:
        """The hooks of a layer that runs `tokens` positions of these cells."""
        stack = ExitStack()
        if layer == len(self.decoder.layers) - 1 and tokens > 1:
            stack.enter_context(hooked(
                self.decoder.module(layer, "mlp"), before=lambda x: x[:, -1:],
                after=lambda out: mx.broadcast_to(out, (out.shape[0], tokens, out.shape[2]))))
        for kind in ("mlp", "attn"):
            after = None
            if kind == self.kind:
                chosen = [first <= layer < last for first, last in (c.restored for c in cells)]
                clean = getattr(self.clean, kind)[layer][:, token]
                after = self._put(clean, chosen)
            if kind == self.severed:
                held = getattr(self.corrupted, kind)[layer][:, token - self.corrupted.begin]
                after = self._put(held, [layer >= c.restored[1] for c in cells])
            if after is not None:
                stack.enter_context(hooked(self.decoder.module(layer, kind), after=after))
        return stack

    def _put(self, values: mx.array, chosen: list[bool]):
        """Put values (1 or samples, dim) at the first position of the chosen cells' rows."""
        if not any(chosen):
            return None
        one = mx.broadcast_to(values, (self.samples, values.shape[-1]))
        rows = mx.concatenate([one] * len(chosen))[:, None]
        mask = mx.array(np.repeat(np.array(chosen), self.samples))[:, None, None]

        def put(out):
            first = rows if all(chosen) else mx.where(mask, rows, out[:, :1])
            return mx.concatenate([first.astype(out.dtype), out[:, 1:]], axis=1)

        return put


def rows_within(decoder: Decoder, tokens: int, memory: float) -> int:
    """How many rows of `tokens` tokens fit into `memory` GB."""
    return max(1, int(memory * 1e9 / (4 * numbers_a_token(decoder) * max(1, tokens))))


def numbers_a_token(decoder: Decoder) -> int:
    """Floats that a token takes in a block: about six MLP-wide and eight residual-wide arrays."""
    return 6 * decoder.key_width + 8 * decoder.dim
