"""The gates of MLPs by numpy's vector code, on a Linux CPU (see `linux_cpu`).

There, silu(x)·y costs MLX more than one of the MLP's three matrix products, and Gemma's
gelu(x)·y, with its tanh, as much as all three. Both pass gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import activations

from .linux_cpu import in_chunks, rows_of, slow_exponentials

_ROOT, _CUBE = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)  # of gelu's approximation


@contextmanager
def fast_gates(mlps: list[nn.Module]) -> Iterator[None]:
    """Compute the gates of mlx-lm's MLPs `down(swiglu(gate(x), up(x)))` and
    `down(gelu_approx(gate(x)) * up(x))` with numpy.

    Modules that compute anything else are left as they are, as are all of them elsewhere.
    """
    with ExitStack() as stack:
        for mlp in mlps if slow_exponentials() else ():
            if gate := _gate_of(type(mlp).__call__):
                stack.enter_context(_fast_gate(mlp, gate))
        yield


def _gate_of(call: Callable) -> Callable | None:
    """The fast gate for a `__call__` that is one of those below, instruction by instruction."""

    def returned(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    def named(self, x):
        down_proj = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return down_proj

    def gelu(self, x):
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))

    def instructions(function):
        code = function.__code__
        return code.co_code, code.co_names, code.co_argcount

    if not isinstance(call, FunctionType):
        return None
    uses = call.__globals__
    if uses.get("swiglu") is activations.swiglu and \
            instructions(call) in (instructions(returned), instructions(named)):
        return swiglu
    if uses.get("nn") is nn and instructions(call) == instructions(gelu):
        return geglu
    return None


@contextmanager
def _fast_gate(mlp: nn.Module, gate: Callable) -> Iterator[None]:
    cls = type(mlp)

    def call(self, x):
        return self.down_proj(gate(self.gate_proj(x), self.up_proj(x)))

    mlp.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    try:
        yield
    finally:
        mlp.__class__ = cls


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate · sigmoid(gate) · up, of one shape; evaluated at once where it is float32."""
    if gate.dtype != mx.float32 or up.dtype != mx.float32:
        return nn.silu(gate) * up
    return _swiglu(gate, up)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) · up with gelu's approximation by tanh, as `swiglu`."""
    if gate.dtype != mx.float32 or up.dtype != mx.float32:
        return nn.gelu_approx(gate) * up
    return _geglu(gate, up)


def _silu(g: np.ndarray, slope: np.ndarray | None) -> np.ndarray:
    """g · sigmoid(g), and its derivative put into `slope`."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right 0
        sigmoid = np.exp(-g)
    sigmoid += 1
    np.reciprocal(sigmoid, out=sigmoid)
    silu = g * sigmoid
    if slope is not None:  # sigmoid + silu (1 - sigmoid)
        np.subtract(silu, silu * sigmoid, out=slope)
        slope += sigmoid
    return silu


def _gelu(g: np.ndarray, slope: np.ndarray | None) -> np.ndarray:
    """g · (1 + tanh s) / 2 with s = √(2/π) (g + 0.044715 g³), and its derivative in `slope`."""
    square = g * g
    tanh = square * _CUBE
    tanh += 1
    tanh *= g
    tanh *= _ROOT
    np.tanh(tanh, out=tanh)
    half = (tanh + 1) * np.float32(0.5)
    if slope is not None:  # half + g (1 - tanh²) s' / 2
        np.multiply(square, 3 * _CUBE, out=slope)
        slope += 1
        slope *= 1 - tanh * tanh
        slope *= g
        slope *= _ROOT / 2
        slope += half
    return half * g


def _gated(activation: Callable) -> Callable:
    """gate, up -> activation(gate) · up, of float32 arrays of one shape."""

    @mx.custom_function
    def gated(gate: mx.array, up: mx.array) -> mx.array:
        mx.eval(gate, up)
        g, u = rows_of(gate), rows_of(up)
        out = np.empty(g.shape, np.float32)

        def compute(rows: slice) -> None:
            np.multiply(activation(g[rows], None), u[rows], out=out[rows])

        in_chunks(compute, g)
        return mx.array(out).reshape(gate.shape)

    @gated.vjp
    def gradient(primals, cotangent, _):
        """The factors at once, from the primals; the products when the cotangent is asked for."""
        g, u = map(rows_of, primals)
        active, slope = np.empty(g.shape, np.float32), np.empty(g.shape, np.float32)

        def compute(rows: slice) -> None:
            active[rows] = activation(g[rows], slope[rows])
            slope[rows] *= u[rows]

        in_chunks(compute, g)
        shape = primals[0].shape
        return cotangent * mx.array(slope).reshape(shape), cotangent * mx.array(active).reshape(
            shape)

    return gated


_swiglu, _geglu = _gated(_silu), _gated(_gelu)
