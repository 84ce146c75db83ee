"""Exponentials, sines and cosines by numpy's vector code where MLX's are scalar: on a Linux CPU.

There, MLX computes exp one number at a time: a softmax over the vocabulary costs more than the
product before it (MLPs' gates: `gates`). numpy's exp uses the vector units, and threads run beside
each other. Rotary embeddings compute the same angles again in every layer. On Metal, on CUDA and on
macOS nothing changes. All but attention pass gradients.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import base

_QUERIES = 32  # positions of a block of attention
_BLOCK = 512  # words whose probabilities are summed before they are cumulated
_CHUNK = 1 << 18  # numbers at a time, so that a chunk stays in the cache
_POOL = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rome-mlx")


def slow_exponentials() -> bool:
    """Whether this is where MLX's exponentials are scalar."""
    return platform.system() == "Linux" and mx.default_device() == mx.cpu


@contextmanager
def fast_rotations(model: nn.Module) -> Iterator[None]:
    """Turn queries and keys by sines and cosines kept from the last time, where offsets are arrays.

    MLX computes them anew in every layer at every step. Modules other than mlx's own `nn.RoPE`
    are left as they are, as are all of them elsewhere.
    """
    with ExitStack() as stack:
        for rope in model.modules() if slow_exponentials() else ():
            if type(rope) is nn.RoPE and not rope.traditional:
                rope.__class__ = _rotation()
                stack.callback(setattr, rope, "__class__", nn.RoPE)
        yield


def _rotation() -> type:
    """An `nn.RoPE` that computes x cos θ + swapped(x) sin θ: (a, b) swapped is (-b, a)."""
    last = None  # (offsets, tokens, angles)

    def call(self, x, offset=0):
        nonlocal last
        if not isinstance(offset, mx.array) or x.dtype != mx.float32 or x.shape[-1] != self.dims:
            return nn.RoPE.__call__(self, x, offset=offset)
        if last is None or last[0] is not offset or last[1] != x.shape[2]:
            last = offset, x.shape[2], _angles(self, offset, x.shape[2])
        cosines, sines, swap = last[2]
        return x * cosines + (x @ swap) * sines

    return type("RoPE", (nn.RoPE,), {"__call__": call, "__module__": nn.RoPE.__module__})


def _angles(rope: nn.RoPE, offset: mx.array, tokens: int) -> tuple[mx.array, mx.array, mx.array]:
    """Cosines and sines (rows, 1, tokens, dims), and the matrix (dims, dims) that swaps."""
    half = rope.dims // 2
    at = rope.scale * (np.array(offset).reshape(-1, 1) + np.arange(tokens))
    angles = at[..., None] * rope.base ** -(np.tile(np.arange(half), 2) / half)
    swap = np.kron([[0, 1], [-1, 0]], np.eye(half))
    return tuple(mx.array(x, mx.float32)
                 for x in (np.cos(angles)[:, None], np.sin(angles)[:, None], swap))


@contextmanager
def fast_attention(attentions: list[nn.Module]) -> Iterator[None]:
    """Compute causal attention over whole float32 rows with numpy's exponentials.

    mlx-lm's attentions call `scaled_dot_product_attention` by that name, in their own files. Where
    the name stands for another function, it is left as it is, as are all of them elsewhere.
    """
    name, plain = "scaled_dot_product_attention", base.scaled_dot_product_attention
    with ExitStack() as stack:
        for attention in attentions if slow_exponentials() else ():
            for cls in type(attention).__mro__:
                names = getattr(vars(cls).get("__call__"), "__globals__", {})
                if names.get(name) is plain:
                    names[name] = partial(_attention, plain)
                    stack.callback(names.__setitem__, name, plain)
        yield


def _attention(plain, queries, keys, values, cache, scale, mask, sinks=None) -> mx.array:
    whole = not hasattr(cache, "bits") and queries.shape[2] == keys.shape[2]
    if whole and mask == "causal" and sinks is None and queries.dtype == mx.float32:
        return causal_attention(queries, keys, values, scale)
    return plain(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array,
                     scale: float) -> mx.array:
    """softmax(scale · q kᵀ, over the tokens so far) v of float32 arrays.

    queries (rows, heads, tokens, d); keys and values (rows, fewer heads, tokens, d), each for a
    group of heads. Queries go in blocks, which skips most of what the mask hides.
    """
    rows, heads, tokens, dim = queries.shape
    shared = keys.shape[1]
    grouped = (queries * scale).reshape(rows, shared, heads // shared, tokens, dim)
    keys, values = keys.swapaxes(2, 3)[:, :, None], values[:, :, None]
    blocks = []
    for start in range(0, tokens, _QUERIES):
        stop = min(tokens, start + _QUERIES)
        weights, sums = _causal_exp(grouped[..., start:stop, :] @ keys[..., :stop], start)
        blocks.append(weights @ values[..., :stop, :] / sums)
    return mx.concatenate(blocks, axis=-2).reshape(*queries.shape[:-1], -1)


def _causal_exp(scores: mx.array, start: int) -> tuple[mx.array, mx.array]:
    """exp(scores − the row's highest), 0 beyond the diagonal, and its sums over the last axis."""
    mx.eval(scores)
    x = np.array(scores, copy=False).reshape(-1, *scores.shape[-2:])
    out, sums = np.empty_like(x), np.empty((*x.shape[:2], 1), np.float32)
    later = np.arange(x.shape[2]) > start + np.arange(x.shape[1])[:, None]
    mask = np.where(later, np.float32(-np.inf), np.float32(0))

    def compute(part: slice) -> None:
        e = np.add(x[part], mask, out=out[part])
        e -= e.max(axis=-1, keepdims=True)
        np.exp(e, out=e)
        e.sum(axis=-1, keepdims=True, out=sums[part])

    in_chunks(compute, x.reshape(len(x), -1))
    return (mx.array(out).reshape(scores.shape),
            mx.array(sums).reshape(*scores.shape[:-1], 1))


def log_sum_exp(logits: mx.array) -> mx.array:
    """log Σ exp over the last axis of float32 logits, (..., vocabulary) -> (...)."""
    return _log_sum_exp(logits) if slow_exponentials() else mx.logsumexp(logits, axis=-1)


@mx.custom_function
def _log_sum_exp(logits: mx.array) -> mx.array:
    mx.eval(logits)
    x = rows_of(logits)
    out = np.empty(len(x), np.float32)

    def compute(rows: slice) -> None:
        highest = x[rows].max(axis=-1, keepdims=True)
        out[rows] = highest[:, 0] + np.log(np.exp(x[rows] - highest).sum(axis=-1))

    in_chunks(compute, x)
    return mx.array(out).reshape(logits.shape[:-1])


@_log_sum_exp.vjp
def _log_sum_exp_gradient(logits, cotangent, output):
    return cotangent[..., None] * _exp(logits - output[..., None])


def drawn(logits: mx.array, uniform: np.ndarray, avoid: Sequence[int] = ()) -> np.ndarray:
    """An index of each row, drawn by softmax: where the cumulated probability passes the row's
    uniform number of [0, 1). logits (rows, vocabulary) float32, uniform (rows,) -> (rows,) int.

    avoid: indices never drawn. Probabilities are summed by blocks, and cumulated within one only.
    """
    mx.eval(logits)
    x, avoid = rows_of(logits), list(avoid)
    out = np.empty(len(x), np.int64)
    starts = np.arange(0, x.shape[1], _BLOCK)

    def compute(rows: slice) -> None:
        e = np.exp(x[rows] - x[rows].max(axis=-1, keepdims=True))
        e[:, avoid] = 0
        ends = np.add.reduceat(e, starts, axis=1).cumsum(axis=1, dtype=np.float64)
        found = []
        for row, end, u in zip(e, ends, uniform[rows], strict=True):
            block = np.searchsorted(end, u * end[-1], side="right")
            left = u * end[-1] - (end[block - 1] if block else 0)
            begin = block * _BLOCK
            inside = row[begin: begin + _BLOCK].cumsum(dtype=np.float64)
            at = np.searchsorted(inside, left, side="right")
            found.append(begin + min(at, np.flatnonzero(row[begin: begin + _BLOCK])[-1]))
        out[rows] = found

    in_chunks(compute, x)
    return out


def _exp(x: mx.array) -> mx.array:
    """exp of a float32 array; infinity where it overflows."""
    mx.eval(x)
    numbers = rows_of(x)
    out = np.empty_like(numbers)

    def compute(rows: slice) -> None:
        with np.errstate(over="ignore"):
            np.exp(numbers[rows], out=out[rows])

    in_chunks(compute, numbers)
    return mx.array(out).reshape(x.shape)


def rows_of(x: mx.array) -> np.ndarray:
    """The numbers of an evaluated array, not copied, (rows, last axis)."""
    return np.array(x, copy=False).reshape(-1, x.shape[-1])


def in_chunks(compute: Callable[[slice], None], x: np.ndarray) -> None:
    """compute(rows) for all rows of x, side by side, some that fit into the cache at a time."""
    step = max(1, _CHUNK // x.shape[1])
    if len(x) <= step:
        return compute(slice(None))
    list(_POOL.map(compute, (slice(i, i + step) for i in range(0, len(x), step))))
