"""The plain way: whole models, all rows and tokens, one cell at a time, nothing reused."""

import mlx.core as mx
import numpy as np

import rome_mlx as rm
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.hooks import intercept

PARTS = ("hidden", "mlp", "attn")


def first(out):
    """A module's output; some give a tuple that begins with it."""
    return out[0] if isinstance(out, tuple) else out


def put(token: int, values: mx.array):
    """A function that writes values (rows or 1, dim) over an output's position `token`."""
    def function(out):
        state = mx.array(first(out))
        state[:, token] = mx.broadcast_to(values, (state.shape[0], state.shape[2]))
        return (state, *out[1:]) if isinstance(out, tuple) else state

    return function


class Traced:
    """A model's clean and corrupted runs on `ids`, to restore single cells.

    noise: (samples, subject tokens, dim); replaced: whether it stands in place of the embedding.
    """

    def __init__(self, model, ids: list[int], begin: int, noise: np.ndarray, replaced: bool):
        self.model, self.decoder = model, Decoder(model)
        self.layers = range(len(self.decoder.layers))
        self.ids = mx.array([ids] * len(noise))
        embedded = np.array(self.decoder.embed([ids]).astype(mx.float32))
        rows = np.repeat(embedded, len(noise), axis=0)
        subject = slice(begin, begin + noise.shape[1])
        rows[:, subject] = noise + (0 if replaced else rows[:, subject])
        self.corrupt = {self.decoder.architecture.embedding: lambda out: mx.array(rows)}

        self.clean_logits, self.clean = self._run(mx.array([ids]), {})
        self.corrupted_logits, self.corrupted = self._run(self.ids, self.corrupt)
        self.answer = int(mx.argmax(self.clean_logits[0, -1]))

    def _run(self, ids, replace):
        paths = [self.decoder.path(layer, part) for layer in self.layers
                 for part in PARTS]
        with intercept(self.model, paths, replace) as seen:
            return self.model(ids), seen

    def probability(self, logits: mx.array) -> np.ndarray:
        """(rows,) P(answer) at the last position."""
        return np.array(mx.softmax(logits[:, -1].astype(mx.float32), axis=-1)[:, self.answer])

    def cell(self, token: int, layer: int, kind: str, window: int = 10,
             severed: str | None = None) -> np.ndarray:
        """(samples,) P(answer) with the clean state at (token, layer) put back."""
        chosen = [layer] if kind == "hidden" else [
            at for at in self.layers if layer - window // 2 <= at < layer + (window + 1) // 2]
        replace = dict(self.corrupt)
        for at in chosen:
            path = self.decoder.path(at, kind)
            replace[path] = put(token, first(self.clean[path])[:, token])
        for at in self.layers if severed else ():
            if at > chosen[-1]:
                path = self.decoder.path(at, severed)
                replace[path] = put(token, first(self.corrupted[path])[:, token])
        with intercept(self.model, replace=replace):
            return self.probability(self.model(self.ids))

    def map(self, tokens, kind: str, window: int = 10, severed: str | None = None) -> np.ndarray:
        """(tokens, layers, samples)."""
        return np.stack([[self.cell(token, layer, kind, window, severed)
                          for layer in self.layers] for token in tokens])


def value_log_probabilities(decoder, rows, layer: int, delta, part: str) -> np.ndarray:
    """log P of the whole model on every whole row with δ added: after each token that the value's
    loss reads, of the targets and then of the KL's."""
    targets, kl = [], []
    for row in rows:
        def add(out, at=row.subject):
            first(out)[:, at] += delta
            return out

        with rm.intercept(decoder.model, replace={decoder.path(layer, part): add}):
            logits = decoder.model(mx.array([row.ids]))[0]
        log_p = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        targets += [log_p[row.begin - 1 + i] for i in range(len(row.target))]
        kl += [log_p[row.subject]] if row.kl else []
    return np.stack(targets + kl)
