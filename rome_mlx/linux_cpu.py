"""Exponentials by numpy's vector code where MLX's are scalar: on a Linux CPU.

There, MLX computes exp one number at a time: the gate silu(x)·y of an MLP costs more than one of
its three matrix products, and a softmax over the vocabulary more than the product before it.
numpy's exp uses the vector units, and threads run beside each other. On Metal, on CUDA and on
macOS nothing changes. Forward only: no gradient passes.
"""

import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_GATED = {"down_proj", "swiglu", "gate_proj", "up_proj"}
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
            if set(type(mlp).__call__.__code__.co_names) == _GATED:
                stack.enter_context(_fast_gate(mlp))
        yield


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


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate · sigmoid(gate) · up, of one shape; evaluated at once where it is float32."""
    if gate.dtype != mx.float32 or up.dtype != mx.float32:
        return nn.silu(gate) * up
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


def log_sum_exp(logits: mx.array) -> mx.array:
    """log Σ exp over the last axis of float32 logits, (..., vocabulary) -> (...)."""
    if not slow_exponentials():
        return mx.logsumexp(logits, axis=-1)
    mx.eval(logits)
    x = _rows(logits)
    out = np.empty(len(x), np.float32)

    def compute(rows: slice) -> None:
        highest = x[rows].max(axis=-1, keepdims=True)
        out[rows] = highest[:, 0] + np.log(np.exp(x[rows] - highest).sum(axis=-1))

    _in_chunks(compute, x)
    return mx.array(out).reshape(logits.shape[:-1])


def _rows(x: mx.array) -> np.ndarray:
    return np.array(x, copy=False).reshape(-1, x.shape[-1])


def _in_chunks(compute: Callable[[slice], None], x: np.ndarray) -> None:
    step = max(1, _CHUNK // x.shape[1])
    list(_POOL.map(compute, (slice(i, i + step) for i in range(0, len(x), step))))
