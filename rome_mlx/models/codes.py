"""The integer codes of quantized weights, and changes of a few of them."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import RomeError
from .weights import weight_shape

_MODE = "affine"


@dataclass(frozen=True)
class CodeChange:
    """Steps of some codes of a quantized weight: W's code at (row, column) += step.

    rows, columns, steps: (n,) int32; values: (n,) float32, what the steps add to the weight; shape:
    (out, in) of the weight; base: `digest_of` the weight that the steps are for.
    """

    rows: np.ndarray = field(repr=False)
    columns: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    shape: tuple[int, int]
    base: str

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What it does, the same for a saved change and its loaded copy."""
        return self.rows, self.columns, self.steps

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    @property
    def change(self) -> np.ndarray:
        """(in, out) float64, W += changeᵀ."""
        out = np.zeros(self.shape[::-1])
        np.add.at(out, (self.columns, self.rows), self.values)
        return out

    def __add__(self, other: "CodeChange") -> "CodeChange":
        if self.base != other.base:
            raise RomeError("the edits change codes of different weights; stack edits of one model")
        rows, columns, steps, values = (
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("rows", "columns", "steps", "values"))
        where, index = np.unique(rows.astype(np.int64) * self.shape[1] + columns,
                                 return_inverse=True)
        steps, values = (np.bincount(index, x, len(where)) for x in (steps, values))
        kept = steps != 0
        rows, columns = np.divmod(where[kept], self.shape[1])
        return CodeChange(rows.astype(np.int32), columns.astype(np.int32),
                          steps[kept].astype(np.int32), values[kept].astype(np.float32),
                          self.shape, self.base)

    @property
    def share(self) -> float:
        """Of the weight's codes, those that change."""
        return len(self.steps) / (self.shape[0] * self.shape[1])

    def added_to(self, codes: np.ndarray) -> None:
        """Take the steps in an array (out, in) of a signed type."""
        np.add.at(codes, (self.rows, self.columns), self.steps.astype(codes.dtype))


def steps_of(change: np.ndarray, scales: np.ndarray, base: str) -> CodeChange:
    """The CodeChange of an array of steps (out, in); scales: of every code."""
    rows, columns = np.nonzero(change)
    steps = change[rows, columns].astype(np.int32)
    return CodeChange(rows.astype(np.int32), columns.astype(np.int32), steps,
                      (steps * scales[rows, columns]).astype(np.float32), change.shape, base)


def check_codes(module: nn.Module, path: str) -> nn.QuantizedLinear:
    """The module, where its codes can be changed. Raises RomeError where it is not quantized, or
    not in steps of equal size."""
    if not isinstance(module, nn.QuantizedLinear):
        raise RomeError(f"{path} is not quantized, and codes are what is to change; load the "
                        "quantized model as it is stored (dtype='stored')")
    if module.mode != _MODE:
        raise RomeError(f"{path} is quantized as {module.mode}, whose steps are not of equal size; "
                        f"only {_MODE} codes are changed")
    return module


def digest_of(module: nn.QuantizedLinear) -> str:
    """A hash of a quantized weight as it is stored."""
    found = hashlib.sha256(np.array(module.weight).tobytes())
    for array in (module.scales, module.biases):
        found.update(np.array(array.astype(mx.float32)).tobytes())
    return found.hexdigest()[:16]


def codes_of(module: nn.QuantizedLinear) -> np.ndarray:
    """(out, in) int16: W = codes · scales + biases, both by groups."""
    words = np.array(module.weight)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    parts = bits.reshape(len(words), -1, module.bits).astype(np.int16)
    return parts @ (1 << np.arange(module.bits, dtype=np.int16))


def scales_of(module: nn.QuantizedLinear) -> np.ndarray:
    """(out, in) float64: what a step of each code is."""
    return np.repeat(np.array(module.scales.astype(mx.float32), np.float64), module.group_size, 1)


def packed(codes: np.ndarray, bits: int) -> mx.array:
    """Codes (out, in) as MLX stores them: bits one after another, the lowest first."""
    each = (codes[..., None] >> np.arange(bits)) & 1
    words = np.packbits(each.astype(np.uint8).reshape(len(codes), -1), axis=1, bitorder="little")
    return mx.array(words.view(np.uint32))


def recoded(module: nn.QuantizedLinear, changes: Sequence[CodeChange]) -> nn.QuantizedLinear:
    """A quantized module with the steps of all changes; it shares the rest with the given one.
    Codes stay within their bits."""
    codes = codes_of(module)
    for change in changes:
        change.added_to(codes)
    out = copy.copy(module)
    out.weight = packed(np.clip(codes, 0, 2**module.bits - 1), module.bits)
    return out


def check_change(change: CodeChange, module: nn.Module, path: str) -> None:
    """Raises RomeError unless the module's stored codes are those that the change is for."""
    if change.base != digest_of(check_codes(module, path)):
        raise RomeError(f"the codes of {path} ({' × '.join(map(str, weight_shape(module)))}) are "
                        "not those that this edit was made for; load that model, or make the edit "
                        "anew with edit.quantized")
