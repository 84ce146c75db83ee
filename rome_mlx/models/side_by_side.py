"""Many edits of one model in one batch: each row has its own edit beside the weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .applied import holder


class RowChanges(nn.Module):
    """A linear module, to whose output for row i of a batch (rows, tokens, in) is added x Aᵢ Bᵢ."""

    def __init__(self, linear: nn.Module, changes: Sequence):
        """changes: a LowRank or None for each edit; the shorter ones are filled up with zeros."""
        super().__init__()
        self.linear = linear
        there = [change for change in changes if change is not None]
        (out, into), rank = there[0].shape, max(change.rank for change in there)
        a, b = np.zeros((len(changes), into, rank)), np.zeros((len(changes), rank, out))
        for i, change in enumerate(changes):
            if change is not None:
                a[i, :, :change.rank], b[i, :change.rank] = change.a, change.b
        self._changes = mx.array(a, dtype=mx.float32), mx.array(b, dtype=mx.float32)
        self._of_rows = self._changes

    def choose(self, edits: mx.array) -> None:
        """edits: for each row of the batches that come, the number of its edit."""
        self._of_rows = tuple(change[edits] for change in self._changes)
        mx.eval(self._of_rows)

    def __call__(self, x: mx.array) -> mx.array:
        a, b = self._of_rows
        return self.linear(x) + ((x.astype(mx.float32) @ a) @ b).astype(x.dtype)


@contextmanager
def side_by_side(model, edits: Sequence) -> Iterator[Callable[[Sequence[int]], None]]:
    """Inside, what it gives is called with the edit's number of every row before a batch runs.

    edits: None for a row without; their changes are low-rank and none of them is applied.
    """
    edits = list(edits)
    paths = {path for edit in edits if edit is not None for path in edit.deltas}
    places = [holder(model, path) for path in sorted(paths)]
    rows = [RowChanges(module, [None if edit is None else edit.deltas.get(path)
                                for edit in edits])
            for path, (_, _, module) in zip(sorted(paths), places, strict=True)]

    def choose(numbers: Sequence[int]) -> None:
        for module in rows:
            module.choose(mx.array(numbers))

    try:
        for (parent, name, _), module in zip(places, rows, strict=True):
            parent[name] = module
        yield choose
    finally:
        for parent, name, module in places:
            parent[name] = module
