"""Weights of linear and embedding modules, quantized or not."""

import os

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..accel.packed import unpacked


def cast(model: nn.Module, dtype: mx.Dtype, packed: bool = False, lazy: bool = False) -> nn.Module:
    """Cast floats to `dtype`, in place, or when they are used; quantized modules are dequantized,
    or stay `packed`, with scales and biases of that type."""
    leaves = [] if packed else tree_flatten(model.leaf_modules(), is_leaf=_is_module)
    while leaves:  # one at a time, so that its codes can go
        path, module = leaves.pop()
        if is_quantized(module):
            floats = dequantized(module, dtype)
            mx.eval(floats.parameters())
            model.update_modules(tree_unflatten([(path, floats)]))
    model.apply(lambda w: w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w)
    model.eval()
    if not lazy:
        mx.eval(model.parameters())
    return model


def has_codes(model: nn.Module) -> bool:
    """Whether anything of the model is quantized."""
    return any(is_quantized(module) for module in model.modules())


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the model's weights as they are."""
    return sum(w.nbytes for _, w in tree_flatten(model.parameters()))


def floats_of(model: nn.Module) -> int:
    """Bytes of the model's weights as float32, dequantized."""
    total = 4 * sum(w.size for _, w in tree_flatten(model.parameters())
                    if mx.issubdtype(w.dtype, mx.floating))
    for module in model.modules():
        if is_quantized(module):
            scales = module.scales.size + (module.biases.size if "biases" in module else 0)
            total += 4 * (module.weight.size * 32 // module.bits - scales)
    return total


def memory_of_machine() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_module(node) -> bool:
    return isinstance(node, nn.Module)


def is_quantized(module: nn.Module) -> bool:
    return isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)


def weight(module: nn.Module, dtype: mx.Dtype = mx.float32) -> mx.array:
    """A linear or embedding module's weight (out, in), dequantized in float32 and cast."""
    return (unpacked(module) if is_quantized(module) else module.weight).astype(dtype)


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear module, of an adapted one that of its base."""
    while "linear" in module:
        module = module.linear
    out, packed = module.weight.shape
    return out, packed * 32 // module.bits if is_quantized(module) else packed


def dequantized(module: nn.Module, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The float module with a quantized module's values."""
    full = weight(module, dtype)
    if isinstance(module, nn.QuantizedEmbedding):
        out = nn.Embedding(1, 1)
    else:
        out = nn.Linear(1, 1, bias="bias" in module)
        if "bias" in module:
            out.bias = module.bias.astype(dtype)
    out.weight = full
    return out
