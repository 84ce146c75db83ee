"""k*: the key that selects the subject (ROME paper, section 3.1, step 1)."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..accel.packed import fast_products
from ..models.decoder import Decoder
from ..models.hooks import hooked
from ..models.tokens import encode


class Readings(NamedTuple):
    """What one MLP reads and writes at the subject's last token, a row a text.

    keys: (rows, d_in), the down projection's input; outputs: (rows, d_out), the MLP's output;
    both float64.
    """

    keys: np.ndarray
    outputs: np.ndarray


class Places(NamedTuple):
    """Where keys are read: ids (rows, tokens), and a row and a position for each key."""

    ids: mx.array
    rows: mx.array
    positions: mx.array

    @classmethod
    def subjects(cls, tokenizer, texts) -> "Places":
        """The last token of each text's subject, of [(text, span)], and nothing after it: what
        comes later does not reach its key."""
        encoded = [encode(tokenizer, text) for text, _ in texts]
        last = [e.range(*span)[1] - 1 for e, (_, span) in zip(encoded, texts, strict=True)]
        width = max(last) + 1
        ids = mx.array([(e.ids + [0] * width)[:width] for e in encoded])
        return cls(ids, mx.arange(len(last)), mx.array(last))

    @classmethod
    def everywhere(cls, ids: Sequence[int]) -> "Places":
        """Every token of a text but the first, which models give a key of its own kind."""
        return cls(mx.array([ids]), mx.zeros(len(ids) - 1, mx.int32), mx.arange(1, len(ids)))


def in_contexts(request, templates: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """(text, characters of the subject) of the request's prompt in every context."""
    begin, end = request.subject_span
    return [(template[:-2] + request.text, (begin + len(template) - 2, end + len(template) - 2))
            for template in templates]


def read_keys(decoder: Decoder, tokenizer, texts, layer: int) -> Readings:
    """Keys and MLP outputs at the last token of each text's subject, of [(text, span)]."""
    ids, rows, at = Places.subjects(tokenizer, texts)
    seen = {}

    def key(x):
        seen["keys"] = x[rows, at]
        return x

    def output(x):
        seen["outputs"] = x[rows, at]
        return x

    with fast_products([decoder.model]), hooked(decoder.module(layer, "down"), before=key), \
            hooked(decoder.module(layer, "mlp"), after=output):
        decoder.run(decoder.enter(decoder.embed(ids)), 0, layer + 1)
    return Readings(_float64(seen["keys"]), _float64(seen["outputs"]))


def keys_by_layer(decoder: Decoder, batches: Sequence[Places], layers: Sequence[int]
                  ) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(layer, for each batch keys (places, d_in) float32) of each of the layers. The hidden states
    of all batches are held, the keys of one layer only."""
    states = [decoder.enter(decoder.embed(some.ids)) for some in batches]
    for layer in range(max(layers) + 1):
        found = []
        for i, some in enumerate(batches):
            def key(x, some=some, found=found):
                found.append(np.array(x[some.rows, some.positions].astype(mx.float32)))
                return x

            with fast_products([decoder.layers[layer]]), (
                    hooked(decoder.module(layer, "down"), before=key) if layer in layers
                    else nullcontext()):
                states[i] = decoder.block(layer, states[i])
                mx.eval(states[i])
        if found:
            yield layer, found


def read_states(decoder: Decoder, tokenizer, texts, layer: int) -> np.ndarray:
    """Block outputs (rows, dim) float64 at the last token of each text's subject."""
    ids, rows, at = Places.subjects(tokenizer, texts)
    with fast_products([decoder.model]):
        h = decoder.run(decoder.enter(decoder.embed(ids)), 0, layer + 1)
    return _float64(h[rows, at])


def _float64(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), np.float64)
