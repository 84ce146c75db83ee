"""Exponentials, sines and cosines by numpy's vector code where MLX's are scalar: on a Linux CPU.

There, MLX computes exp one number at a time: the gate silu(x)·y of an MLP costs more than one of
its three matrix products, and a softmax over the vocabulary more than the product before it.
numpy's exp uses the vector units, and threads run beside each other. Rotary embeddings compute
the same angles again in every layer. On Metal, on CUDA and on macOS nothing changes. All but
attention pass gradients.
"""

import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import activations, base

_QUERIES = 32  # positions of a block of attention
_CHUNK = 1 << 18  # numbers at a time, so that a chunk stays in the cache
_POOL = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rome-mlx")


def slow_exponentials() -> bool:
    """Whether this is where MLX's exponentials are scalar."""
    return platform.system() == "Linux" and mx.default_device() == mx.cpu


@contextmanager
def fast_gates(mlps: list[nn.Module]) -> Iterator[None]:
    """Compute the gates of mlx-lm's `down(swiglu(gate(x), up(x)))` MLPs with numpy.

    Modules that compute anything else are left as they are, as are all of them elsewhere.
    """
    with ExitStack() as stack:
        for mlp in mlps if slow_exponentials() else ():
            if _is_gated(type(mlp).__call__):
                stack.enter_context(_fast_gate(mlp))
        yield


def _is_gated(call: Callable) -> bool:
    """Whether a `__call__` is one of the two below, instruction by instruction, and its swiglu
    is mlx-lm's."""

    def returned(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    def named(self, x):
        down_proj = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return down_proj

    def instructions(function):
        code = function.__code__
        return code.co_code, code.co_names, code.co_argcount

    return (isinstance(call, FunctionType)
            and call.__globals__.get("swiglu") is activations.swiglu
            and instructions(call) in (instructions(returned), instructions(named)))


@contextmanager
def _fast_gate(mlp: nn.Module) -> Iterator[None]:
    cls = type(mlp)

    def call(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    mlp.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    try:
        yield
    finally:
        mlp.__class__ = cls


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

    _in_chunks(compute, x.reshape(len(x), -1))
    return (mx.array(out).reshape(scores.shape),
            mx.array(sums).reshape(*scores.shape[:-1], 1))


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate · sigmoid(gate) · up, of one shape; evaluated at once where it is float32."""
    if gate.dtype != mx.float32 or up.dtype != mx.float32:
        return nn.silu(gate) * up
    return _swiglu(gate, up)


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    mx.eval(gate, up)
    g, u = _rows(gate), _rows(up)
    out = np.empty(g.shape, np.float32)

    def compute(rows: slice) -> None:
        with np.errstate(over="ignore"):  # exp(-x) = inf gives the right 0
            e = np.exp(-g[rows])
        e += 1
        np.divide(g[rows], e, out=e)
        np.multiply(e, u[rows], out=out[rows])

    _in_chunks(compute, g)
    return mx.array(out).reshape(gate.shape)


@_swiglu.vjp
def _swiglu_gradient(primals, cotangent, _):
    """The factors at once, from the primals; the products when the cotangent is asked for."""
    g, u = map(_rows, primals)
    silu, slope = np.empty(g.shape, np.float32), np.empty(g.shape, np.float32)

    def compute(rows: slice) -> None:
        with np.errstate(over="ignore"):
            sigmoid = np.exp(-g[rows])
        sigmoid += 1
        np.reciprocal(sigmoid, out=sigmoid)
        y = np.multiply(g[rows], sigmoid, out=silu[rows])
        # silu' = sigmoid + silu (1 - sigmoid)
        y = np.subtract(y, y * sigmoid, out=slope[rows])
        y += sigmoid
        y *= u[rows]

    _in_chunks(compute, g)
    shape = primals[0].shape
    return cotangent * mx.array(slope).reshape(shape), cotangent * mx.array(silu).reshape(shape)


def log_sum_exp(logits: mx.array) -> mx.array:
    """log Σ exp over the last axis of float32 logits, (..., vocabulary) -> (...)."""
    return _log_sum_exp(logits) if slow_exponentials() else mx.logsumexp(logits, axis=-1)


@mx.custom_function
def _log_sum_exp(logits: mx.array) -> mx.array:
    mx.eval(logits)
    x = _rows(logits)
    out = np.empty(len(x), np.float32)

    def compute(rows: slice) -> None:
        highest = x[rows].max(axis=-1, keepdims=True)
        out[rows] = highest[:, 0] + np.log(np.exp(x[rows] - highest).sum(axis=-1))

    _in_chunks(compute, x)
    return mx.array(out).reshape(logits.shape[:-1])


@_log_sum_exp.vjp
def _log_sum_exp_gradient(logits, cotangent, output):
    return cotangent[..., None] * _exp(logits - output[..., None])


def drawn(logits: mx.array, uniform: np.ndarray) -> np.ndarray:
    """An index of each row, drawn by softmax: where the cumulated probability passes the row's
    uniform number of [0, 1). logits (rows, vocabulary) float32, uniform (rows,) -> (rows,) int."""
    mx.eval(logits)
    x = _rows(logits)
    out = np.empty(len(x), np.int64)

    def compute(rows: slice) -> None:
        cumulated = np.exp(x[rows] - x[rows].max(axis=-1, keepdims=True)).cumsum(
            axis=-1, dtype=np.float64)
        out[rows] = [np.searchsorted(row, u * row[-1], side="right")
                     for row, u in zip(cumulated, uniform[rows], strict=True)]

    _in_chunks(compute, x)
    return out


def _exp(x: mx.array) -> mx.array:
    """exp of a float32 array; infinity where it overflows."""
    mx.eval(x)
    numbers = _rows(x)
    out = np.empty_like(numbers)

    def compute(rows: slice) -> None:
        with np.errstate(over="ignore"):
            np.exp(numbers[rows], out=out[rows])

    _in_chunks(compute, numbers)
    return mx.array(out).reshape(x.shape)


def _rows(x: mx.array) -> np.ndarray:
    return np.array(x, copy=False).reshape(-1, x.shape[-1])


def _in_chunks(compute: Callable[[slice], None], x: np.ndarray) -> None:
    step = max(1, _CHUNK // x.shape[1])
    if len(x) <= step:
        return compute(slice(None))
    list(_POOL.map(compute, (slice(i, i + step) for i in range(0, len(x), step))))
