"""Attribution patching: what restoring every state would do, from one backward pass.

The measure m is the log odds of the answer: its logit minus the log-sum-exp of all others. To first
order a state z that goes back from corrupted to clean moves it by (z_clean - z_corrupted) · ∂m/∂z,
the gradient taken in the corrupted run (Kramár et al. 2403.00745, section 2; Nanda 2023).

Every token of the corrupted run is a row of its own here, on the keys and values of the tokens
before it, so that a layer's gradient comes in two parts: through the token's own output, and
through the keys and values that later tokens read.

A window of MLP or attention outputs is not the sum of its layers: the gradient at one passes
through the others, which are replaced too, and a plain sum counts these paths twice. Their
gradients have to be stopped. Here the window's layers are run once more at the token alone, with
the module's outputs clean, which stops them exactly: what this changes in the token's state is
multiplied by its gradient above the window, and by the gradient of what later tokens read at each
layer within. In the limit of small differences that is the sum with stopped gradients; beside it
the token's own way through the window is exact, which pays for attention.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..accel.gates import fast_gates
from ..accel.linux_cpu import log_sum_exp
from ..accel.packed import fast_products
from ..models.decoder import Decoder, Prefix
from ..models.hooks import hooked
from .restore import Cell
from .runs import Run


class Gradients:
    """Gradients of the log odds of `answer` at every token and layer of a corrupted run.

    Rows go token by token from `corrupted.begin` on, the noise samples of a token next to each
    other. log_odds: (samples,) of the corrupted run; above: per layer (rows, 1, dim), at the
    layer's output; read: per layer (rows, 1, dim), at its input, of what later tokens read there.
    Activations are computed again a layer at a time, so memory is that of one layer.
    """

    def __init__(self, decoder: Decoder, clean: Run, corrupted: Run, answer: int):
        self.decoder, self.clean, self.corrupted = decoder, clean, corrupted
        self.samples, self.tokens = corrupted.inputs[0].shape[:2]
        self.layers = len(decoder.layers)
        self.log_odds, last = _log_odds(decoder, corrupted.inputs[-1][:, -1], answer)
        self.above, self.read = [], []
        rows = range(self.tokens)
        above = mx.concatenate([mx.zeros((last.shape[0] * (self.tokens - 1), *last.shape[1:])),
                                last]).astype(last.dtype)[:, None]
        for layer in reversed(range(self.layers)):
            own, read = self._backward(layer, above, rows)
            mx.eval(own, read)
            self.above.insert(0, above)
            self.read.insert(0, read)
            above = own + read

    def hidden(self, tokens: Sequence[int]) -> np.ndarray:
        """(tokens, layers, samples): the change of m when one block's output is clean."""
        found = []
        for layer in range(self.layers):
            clean = self._clean(self.clean.inputs[layer + 1], tokens)
            difference = clean - self._rows(self.corrupted.inputs[layer + 1], tokens)
            found.append(self._products(difference, self.above[layer], tokens))
        return np.stack(found, axis=1)

    def windows(self, kind: str, cells: Sequence[Cell], tokens: Sequence[int]) -> np.ndarray:
        """(tokens, cells, samples): the change of m when a window's outputs are clean.

        kind: mlp or attn. Windows that begin at one layer are one until each ends.
        """
        found = np.empty((len(tokens), len(cells), self.samples), np.float32)
        ends = {cell.restored[0]: 0 for cell in cells}
        for cell in cells:
            ends[cell.restored[0]] = max(ends[cell.restored[0]], cell.restored[1])
        states: dict[int, mx.array] = {}  # of windows by where they begin, (rows, 1, dim)
        changes: dict[int, np.ndarray] = {}  # by what was read so far, (tokens, samples)
        for layer in range(self.layers):
            before = self._rows(self.corrupted.inputs[layer], tokens)
            live = [first for first, last in ends.items() if first <= layer < last]
            for first in live:
                states.setdefault(first, before)
                changes[first] = changes.get(first, 0) + self._products(
                    states[first] - before, self.read[layer], tokens)
            after = self._restored(layer, kind, [states[first] for first in live], tokens)
            states.update(zip(live, after, strict=True))
            now = self._rows(self.corrupted.inputs[layer + 1], tokens)
            for i, cell in enumerate(cells):
                first, last = cell.restored
                if last == layer + 1:
                    found[:, i] = changes[first] + self._products(
                        states[first] - now, self.above[layer], tokens)
        return found

    def _restored(self, layer: int, kind: str, states: list[mx.array], tokens) -> list[mx.array]:
        """The layer's outputs at the tokens alone, its module's output there clean."""
        if not states:
            return []
        module = self.decoder.module(layer, kind)
        clean = self._clean(getattr(self.clean, kind)[layer], tokens)
        mlp = [] if kind == "mlp" else [self.decoder.module(layer, "mlp")]
        with fast_gates(mlp), fast_products([self.decoder.layers[layer]]), hooked(
                module, after=lambda out: mx.concatenate(
                    [clean] * len(states)).astype(out.dtype)):
            prefix = self._prefix(*self._known(layer), tokens, len(states))
            out = self.decoder.block(layer, mx.concatenate(states), prefix)
        mx.eval(out)
        return mx.split(out, len(states))

    def _backward(self, layer: int, above: mx.array, tokens) -> tuple[mx.array, mx.array]:
        """Gradients (rows, 1, dim) at a layer's input, of its own outputs and of what later tokens
        read, from the gradient at its output."""
        inputs = self._rows(self.corrupted.inputs[layer], tokens)

        def out(h, keys, values):
            return self.decoder.block(layer, h, self._prefix(keys, values, tokens))

        def written(h):
            prefix = self._prefix(*self._known(layer), tokens)
            self.decoder.block(layer, h, prefix)
            return prefix.new

        with fast_products([self.decoder.layers[layer]]):
            with fast_gates([self.decoder.module(layer, "mlp")]):
                _, (own, *read) = mx.vjp(out, [inputs, *self._known(layer)], [above])
            cotangents = [mx.concatenate([x[:, :, t: t + 1] for t in
                                          range(self.corrupted.begin, x.shape[2])]) for x in read]
            _, (later,) = mx.vjp(written, [inputs], cotangents)
        return own, later

    def _known(self, layer: int) -> tuple[mx.array, mx.array]:
        """The layer's keys and values of all tokens from 0 on, (samples, heads, tokens, d)."""
        prefix = self.corrupted.prefixes[layer].upto(self.corrupted.begin + self.tokens)
        return prefix.keys, prefix.values

    def _prefix(self, keys: mx.array, values: mx.array, tokens, copies: int = 1) -> Prefix:
        """What comes before each row, padded on the left to one length; `copies` of all rows."""
        lengths = [self.corrupted.begin + t for t in tokens]
        longest = max(lengths)
        padding = np.repeat([longest - length for length in lengths], self.samples)
        at = np.maximum(0, np.arange(longest) - np.array(padding)[:, None])  # (rows, longest)
        sample = np.tile(np.arange(self.samples), len(tokens))
        keys, values = (mx.moveaxis(mx.moveaxis(x, 2, 1)[mx.array(sample)[:, None], mx.array(at)],
                                    1, 2) for x in (keys, values))
        return Prefix(keys, values, mx.array(np.tile(padding, copies)))

    def _rows(self, states: mx.array, tokens) -> mx.array:
        """(samples, tokens, dim) of the corrupted run -> (rows, 1, dim)."""
        return mx.concatenate([states[:, t: t + 1] for t in tokens])

    def _clean(self, states: mx.array, tokens) -> mx.array:
        """(1, tokens, dim) of the clean run -> (rows, 1, dim)."""
        return mx.concatenate([mx.repeat(states[:, t: t + 1], self.samples, axis=0)
                               for t in (self.corrupted.begin + t for t in tokens)])

    def _products(self, difference: mx.array, gradient: mx.array, tokens) -> np.ndarray:
        """Scalar products of rows, (tokens, samples); the gradient has rows of all tokens."""
        chosen = gradient.reshape(self.tokens, self.samples, -1)[mx.array(list(tokens))]
        products = difference.reshape(chosen.shape).astype(mx.float32) * chosen
        return np.array(products.sum(axis=-1))


def _log_odds(decoder: Decoder, h: mx.array, answer: int) -> tuple[np.ndarray, mx.array]:
    """(rows,) float64 log odds of the answer after final hidden states (rows, dim), and their
    gradient."""
    def odds(h):
        logits = decoder.logits(h).astype(mx.float32)
        others = mx.where(mx.arange(logits.shape[1]) == answer, -mx.inf, logits)
        return logits[:, answer] - log_sum_exp(others)

    (found,), (gradient,) = mx.vjp(odds, [h], [mx.ones(len(h))])
    return np.array(found, np.float64), gradient
