"""Products with quantized weights, where MLX is slow at them: on a CPU.

There a 4-bit product of many rows costs MLX thirty times the same product of floats, and floats of
the whole model cost eight times its memory. So a slice of the weight is unpacked, multiplied by the
fast BLAS and forgotten: a product needs one slice's memory, and unpacking a weight takes less time
than multiplying it by a hundred rows. Gradients pass, by unpacking again.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from operator import itemgetter

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .linux_cpu import in_chunks, slow_exponentials

SLICE = 1 << 24  # numbers of a weight that are unpacked at once
_FEW = 1  # rows, up to which MLX's own product is as fast
_kept = threading.local()  # a slice's memory, of this thread


@contextmanager
def fast_products(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Multiply by what is quantized in these modules slice by slice; elsewhere nothing changes."""
    with ExitStack() as stack:
        for module in modules if slow_exponentials() else ():
            for _, leaf in module.named_modules():
                if type(leaf) in _FAST:
                    stack.callback(setattr, leaf, "__class__", type(leaf))
                    leaf.__class__ = _FAST[type(leaf)]
        yield


@cache
def unpacking_rate() -> float:
    """Numbers of 4-bit weights a second that are unpacked here, by a trial of a moment."""
    module = nn.QuantizedLinear(4096, 1024, group_size=64, bits=4)
    x, best = mx.zeros((1, 4096)), float("inf")
    for _ in range(4):
        began = time.perf_counter()
        for _ in _slices(module, x):
            pass
        best = min(best, time.perf_counter() - began)
    return 4096 * 1024 / best


def unpacked(module: nn.Module) -> mx.array:
    """A quantized module's weight (out, in) float32. Scales of 16 bits are widened first, as they
    are in MLX's products; `mx.dequantize` would round the weight to them."""
    table = _table_of(module) if slow_exponentials() else None
    if table is None:
        return dequantize(module)
    count, width = _shape(module)
    out = mx.zeros((count, width))
    mx.eval(out)
    _unpack(module, slice(0, count), table, np.array(out, copy=False))
    return out


def _products(module: nn.Module) -> Callable[[mx.array], mx.array]:
    """x (..., in) -> x Wᵀ (..., out), of x's type, for a quantized module's weight W (out, in)."""
    @mx.custom_function
    def forward(x: mx.array) -> mx.array:
        rows = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        parts = []
        for _, part in _slices(module, rows):
            parts.append(rows @ part.T)
            mx.eval(parts[-1])  # before the slice's memory holds the next one
        return mx.concatenate(parts, axis=1).reshape(*x.shape[:-1], -1).astype(x.dtype)

    @forward.vjp
    def backward(x, cotangent, _):
        rows = cotangent.reshape(-1, cotangent.shape[-1]).astype(mx.float32)
        total = mx.zeros((len(rows), x.shape[-1]))
        for where, part in _slices(module, rows):
            total = total + rows[:, where] @ part
            mx.eval(total)
        return total.reshape(x.shape).astype(x.dtype)

    return forward


def _slices(module: nn.Module, rows: mx.array) -> Iterator[tuple[slice, mx.array]]:
    """The weight's rows, so many at a time: where they are, and (rows, in) float32, which is there
    until the next is asked for."""
    mx.eval(rows)
    (count, width), table = _shape(module), _table_of(module)
    step = max(1, min(count, SLICE // width))
    for i in range(0, count, step):
        where = slice(i, min(count, i + step))
        if table is None:
            yield where, dequantize(module, itemgetter(where))
        else:
            memory = _memory((where.stop - i) * width).reshape(-1, width)
            mx.eval(memory)
            _unpack(module, where, table, np.array(memory, copy=False))
            yield where, memory


def _shape(module: nn.Module) -> tuple[int, int]:
    return len(module.weight), module.weight.shape[1] * 32 // module.bits


def _table_of(module: nn.Module) -> np.ndarray | None:
    """The table by which `_unpack` unpacks a module; None where a code may lie across 16 bits."""
    return _table(module.bits) if module.mode == "affine" and 16 % module.bits == 0 else None


def dequantize(module: nn.Module, rows: Callable[[mx.array], mx.array] = lambda x: x) -> mx.array:
    """A module's weight by MLX, (rows, in) float32. rows: which of its rows, given any array of
    it."""
    scales, biases = rows(module.scales), module.get("biases")
    if biases is not None:  # affine
        scales, biases = scales.astype(mx.float32), rows(biases).astype(mx.float32)
    return mx.dequantize(rows(module.weight), scales, biases, group_size=module.group_size,
                         bits=module.bits, mode=module.mode, dtype=mx.float32)


def _memory(numbers: int) -> mx.array:
    """So many float32, a part of the last time's where that was as large: numpy writes into it,
    and MLX reads it."""
    held = getattr(_kept, "memory", None)
    if held is None or held.size < numbers:
        _kept.memory = held = mx.zeros(numbers)
        mx.eval(held)
    return held[:numbers]


@cache
def _table(bits: int) -> np.ndarray:
    """The codes (65536, n) float32 that 16 bits hold."""
    shifts = np.arange(0, 16, bits)
    return ((np.arange(1 << 16)[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.float32)


def _unpack(module: nn.Module, where: slice, table: np.ndarray, out: np.ndarray) -> None:
    """scales · codes + biases, into out."""
    packed, scales, biases = (np.array(x[where].astype(kind), copy=False) for x, kind in (
        (module.weight, mx.uint32), (module.scales, mx.float32), (module.biases, mx.float32)))
    packed = packed.view(np.uint16)

    def compute(rows: slice) -> None:
        some = out[rows]
        np.take(table, packed[rows], axis=0, out=some.reshape(len(some), -1, table.shape[1]),
                mode="clip")
        groups = some.reshape(len(some), -1, module.group_size)
        groups *= scales[rows, :, None]
        groups += biases[rows, :, None]

    in_chunks(compute, out)


class _Linear(nn.QuantizedLinear):
    def __call__(self, x):
        if _few(x):
            return super().__call__(x)
        out = _products(self)(x)
        return out + self["bias"] if "bias" in self else out


class _Embedding(nn.QuantizedEmbedding):
    def as_linear(self, x):
        return super().as_linear(x) if _few(x) else _products(self)(x)


def _few(x: mx.array) -> bool:
    return x.size <= _FEW * x.shape[-1]


_FAST = {nn.QuantizedLinear: _Linear, nn.QuantizedEmbedding: _Embedding}
