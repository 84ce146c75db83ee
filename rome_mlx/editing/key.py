"""k*: the key that selects the subject (ROME paper, section 3.1, step 1)."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

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


def in_contexts(request, templates: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """(text, characters of the subject) of the request's prompt in every context."""
    begin, end = request.subject_span
    return [(template[:-2] + request.text, (begin + len(template) - 2, end + len(template) - 2))
            for template in templates]


def read_keys(decoder: Decoder, tokenizer, texts, layer: int) -> Readings:
    """Keys and MLP outputs at the last token of each text's subject, of [(text, span)]."""
    ids, rows, at = _subjects(tokenizer, texts)
    seen = {}

    def key(x):
        seen["keys"] = x[rows, at]
        return x

    def output(x):
        seen["outputs"] = x[rows, at]
        return x

    h = decoder.run(decoder.enter(decoder.embed(ids)), 0, layer)
    with hooked(decoder.module(layer, "down"), before=key), \
            hooked(decoder.module(layer, "mlp"), after=output):
        decoder.block(layer, h)
    return Readings(_float64(seen["keys"]), _float64(seen["outputs"]))


def read_states(decoder: Decoder, tokenizer, texts, layer: int) -> np.ndarray:
    """Block outputs (rows, dim) float64 at the last token of each text's subject."""
    ids, rows, at = _subjects(tokenizer, texts)
    h = decoder.run(decoder.enter(decoder.embed(ids)), 0, layer + 1)
    return _float64(h[rows, at])


def _subjects(tokenizer, texts) -> tuple[mx.array, mx.array, mx.array]:
    """Ids (rows, tokens) up to the last subject, and row and position of each subject's end."""
    encoded = [encode(tokenizer, text) for text, _ in texts]
    last = [e.range(*span)[1] - 1 for e, (_, span) in zip(encoded, texts, strict=True)]
    width = max(last) + 1  # what comes after the subject does not reach its key
    ids = mx.array([(e.ids + [0] * width)[:width] for e in encoded])
    return ids, mx.arange(len(last)), mx.array(last)


def _float64(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), np.float64)
