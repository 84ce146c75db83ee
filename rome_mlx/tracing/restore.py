"""All cells of a tracing map at one token, as a staircase.

Restoring token t at layer l changes nothing before t and nothing below l: positions before t come
from the corrupted run's keys and values, layers below from its states. Every cell therefore joins
one growing batch at its own layer, and the batch runs through the layers above together. Rows are
ordered cell by cell, the noise samples of a cell next to each other.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..decoder import Decoder
from ..hooks import hooked
from ..linux_cpu import fast_gates, log_sum_exp
from .runs import Run


@dataclass(frozen=True)
class Cell:
    """Restore one token's state. The batch is joined below layer `start`.

    layer: the map's column; restored: layers [first, last) whose module output is restored,
    empty where the state entering `start` is.
    """

    layer: int
    start: int
    restored: tuple[int, int] = (0, 0)


def hidden_cells(layers: int) -> list[Cell]:
    """A cell a layer: that block's output is restored, so the next layer is the first to run."""
    return [Cell(layer, layer + 1) for layer in range(layers)]


def window_cells(layers: int, window: int) -> list[Cell]:
    """A cell a layer: a module's output at layers [l - window // 2, l + (window + 1) // 2)."""
    cells = []
    for layer in range(layers):
        first = max(0, layer - window // 2)
        last = min(layers, layer + (window + 1) // 2)
        cells.append(Cell(layer, first, (first, last)))
    return cells


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
        order = sorted(range(len(cells)), key=lambda i: cells[i].start)
        prefixes = self.corrupted.prefix(token)
        out = np.empty((len(cells), self.samples), np.float32)
        mlps = [self.decoder.module(i, "mlp") for i in range(len(self.decoder.layers))]
        with fast_gates(mlps):
            for i in range(0, len(order), self.cells_a_batch):
                group = order[i: i + self.cells_a_batch]
                out[group] = self._staircase(token, [cells[c] for c in group], prefixes)
        return out

    def _staircase(self, token: int, cells: list[Cell], prefixes) -> np.ndarray:
        h, active, layers = None, 0, len(self.decoder.layers)
        for layer in range(cells[0].start, layers + 1):
            joining = sum(cell.start == layer for cell in cells)
            if joining:
                entry = self._entry(token, layer)
                new = mx.concatenate([entry] * joining)
                h = new if h is None else mx.concatenate([h, new])
                active += joining
            if layer < layers:
                with self._hooks(token, layer, cells[:active]):
                    h = self.decoder.block(layer, h, prefixes[layer])
                mx.async_eval(h)
        return self.probabilities(h[:, -1]).reshape(len(cells), self.samples)

    def probabilities(self, h: mx.array) -> np.ndarray:
        """P(answer) of final hidden states (rows, dim)."""
        logits = self.decoder.logits(h).astype(mx.float32)
        return np.array(mx.exp(logits[:, self.answer] - log_sum_exp(logits)))

    def _entry(self, token: int, layer: int) -> mx.array:
        """What enters `layer` at tokens >= token: corrupted, the token itself clean for hidden."""
        h = self.corrupted.inputs[layer][:, token - self.corrupted.begin:]
        if self.kind != "hidden":
            return h
        clean = self.clean.inputs[layer][:, token: token + 1]
        clean = mx.broadcast_to(clean, (self.samples, *clean.shape[1:]))
        return mx.concatenate([clean, h[:, 1:]], axis=1)

    def _hooks(self, token: int, layer: int, cells: list[Cell]) -> ExitStack:
        stack = ExitStack()
        for kind, part in (("mlp", "mlp"), ("attn", "attention")):
            after = None
            if kind == self.kind:
                chosen = [first <= layer < last for first, last in (c.restored for c in cells)]
                clean = getattr(self.clean, part)[layer][:, token]
                after = self._put(clean, chosen)
            if kind == self.severed:
                held = getattr(self.corrupted, part)[layer][:, token - self.corrupted.begin]
                after = self._put(held, [layer >= max(c.start, c.restored[1]) for c in cells])
            if after is not None:
                stack.enter_context(hooked(self.decoder.module(layer, part), after=after))
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
