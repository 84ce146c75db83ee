"""An edit as changes of a quantized weight's own codes: the same file, as large and as fast.

W stays scales · codes + biases, group by group. For every row, whose scales are s and which the
edit is to change by Δ, find whole steps n of its codes that minimise

    (s∘n - Δ)ᵀ H (s∘n - Δ),    H = C + μ Σ k kᵀ

over the edit's keys k: what the row gives for text, by C, and, μ times as heavy, for the fact. One
code moves at a time, the one that gains most, by as many steps as gain most; the gradient follows
by one row of H. Rows end by themselves: each step lowers what is minimised.
"""

from dataclasses import replace

import numpy as np

from ..errors import RomeError
from ..models import applied
from ..models.codes import check_codes, codes_of, digest_of, scales_of, steps_of
from ..models.decoder import Decoder
from ..moments.lookup import find_moments
from .key import in_contexts, read_keys

KEYS = 0.02  # μ
_LEAST = 3e-5  # of what a row had to be moved by: a step that gains less is not taken
_ROWS = 16  # at a time, as many as stay in a processor's cache


def quantized(edit, model, tokenizer, *, moments=None, keys: float = KEYS):
    """What `Edit.quantized` gives. keys: μ."""
    if edit.in_codes:
        raise RomeError("this edit changes codes already; apply or save it as it is")
    with edit.applied(model):  # every check that applying makes
        pass
    decoder = Decoder(model)
    layers = {decoder.path(layer, "down"): layer for layer in decoder.dense_layers}
    if others := sorted(set(edit.deltas) - set(layers)):
        raise RomeError(f"{others[0]} is no down projection, of which alone codes are changed; "
                        f"use an editor such as rome, not {edit.method}")
    for path in edit.deltas:
        check_codes(applied.original(model, path), path)
    given = find_moments(model, tokenizer, [layers[path] for path in edit.deltas], moments)
    deltas = {}
    for path, delta in edit.deltas.items():
        now = applied.coded(model, path)
        found = _keys(edit, path, decoder, tokenizer, layers[path])
        metric = given.matrix(layers[path]) + keys * found @ found.T
        scales = scales_of(now)
        steps = nearest(delta.change.T, metric, codes_of(now), scales, 2**now.bits - 1)
        deltas[path] = steps_of(steps, scales, digest_of(applied.original(model, path)))
    return replace(edit, deltas=deltas, numbers={})


def nearest(change: np.ndarray, metric: np.ndarray, codes: np.ndarray, scales: np.ndarray,
            most: int) -> np.ndarray:
    """n (out, in) whole numbers for which scales · n is near `change` (out, in) by `metric` (in,
    in), and codes + n from 0 to `most`."""
    blocks = range(0, len(change), _ROWS)
    return np.concatenate([
        _nearest_rows(change[i: i + _ROWS], metric, codes[i: i + _ROWS], scales[i: i + _ROWS], most)
        for i in blocks])


def _nearest_rows(change, metric, codes, scales, most: int) -> np.ndarray:
    steps, gradient = np.zeros(change.shape, np.int16), -change @ metric
    least = _LEAST * -(gradient * change).sum(1)
    curvature, rows = scales * np.diag(metric), np.flatnonzero(least > 0)
    while len(rows):
        g, s, now = gradient[rows], curvature[rows], codes[rows] + steps[rows]
        n = np.clip(np.rint(-g / s), -now, most - now)
        gain = -n * scales[rows] * (2 * g + n * s)
        column, row = gain.argmax(1), np.arange(len(rows))
        worth = gain[row, column] > least[rows]
        rows, column, moved = rows[worth], column[worth], n[row, column][worth]
        steps[rows, column] += moved.astype(np.int16)
        gradient[rows] += (moved * scales[rows, column])[:, None] * metric[column]
    return steps


def _keys(edit, path: str, decoder: Decoder, tokenizer, layer: int) -> np.ndarray:
    """(d_in, n): the keys that the edit wrote at, or those of its requests in all contexts, which
    count as one a request."""
    if path in edit.keys:
        return edit.keys[path]
    contexts = edit.context_templates or ["{}"]
    texts = [text for request in edit.requests for text in in_contexts(request, contexts)]
    return read_keys(decoder, tokenizer, texts, layer).keys.T / np.sqrt(len(contexts))
