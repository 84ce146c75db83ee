"""A GGUF file's key-value pairs and tensors. Every length is checked: the file is foreign data.

The `gguf` package reads such files too, but trusts their counts, so that a damaged one can keep
it busy for ever.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from ...errors import RomeError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
            10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_FLOATS = {Type.F32: np.float32, Type.F16: np.float16}

#: GGUF types that mlx keeps quantized, value for value -> bytes a block of 32 weights
KEPT = {Type.Q4_0: 18, Type.Q4_1: 20, Type.Q8_0: 34}


@dataclass(frozen=True)
class Tensor:
    """`data` is (..., in) of the float type, or uint8 blocks (..., bytes a row)."""

    name: str
    kind: Type
    shape: tuple[int, ...]  # rows first, as mlx has it
    data: np.ndarray

    def floats(self) -> np.ndarray:
        """The values: float16 where the file has it, else float32."""
        if self.kind in _FLOATS:
            return np.array(self.data)
        try:
            return gguf.quants.dequantize(self.data, self.kind).reshape(self.shape)
        except NotImplementedError as error:
            raise RomeError(f"tensor {self.name!r} has the type {self.kind.name}, which the gguf "
                            "package does not dequantize; take another quantization") from error

    def packed(self) -> dict[str, np.ndarray]:
        """Blocks of a KEPT type as mlx groups of 32: w = scale * q + bias, scales float32."""
        size, rows = KEPT[self.kind], self.shape[0]
        blocks = np.ascontiguousarray(self.data).reshape(rows, -1, size)
        scales = blocks[..., 0:2].copy().view(np.float16)[..., 0].astype(np.float32)
        if self.kind == Type.Q8_0:
            codes = (blocks[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint32)
            return {"weight": _pack(codes.reshape(rows, -1), 8), "scales": scales,
                    "biases": -128 * scales}
        nibbles = blocks[..., size - 16:]
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).astype(np.uint32)
        biases = (-8 * scales if self.kind == Type.Q4_0
                  else blocks[..., 2:4].copy().view(np.float16)[..., 0].astype(np.float32))
        return {"weight": _pack(codes.reshape(rows, -1), 4), "scales": scales, "biases": biases}


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """(out, in) codes -> (out, in * bits / 32) uint32, the first code in the lowest bits."""
    lanes = codes.reshape(codes.shape[0], -1, 32 // bits)
    return np.bitwise_or.reduce(lanes << (bits * np.arange(32 // bits, dtype=np.uint32)), axis=-1)


class GGUFFile:
    """`metadata` {key: value} and `tensors` of the file at `path`.

    Raises RomeError for what is not a whole GGUF file, OSError for what cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise RomeError("it is empty")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        if self._take(4) != b"GGUF":
            raise RomeError("it does not begin with GGUF")
        if (version := self._scalar("<I")) not in (2, 3):
            raise RomeError(f"it is of version {version}; versions 2 and 3 are read")
        tensors, pairs = self._scalar("<Q"), self._scalar("<Q")
        self.metadata = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        headers = [self._tensor_header() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        start = math.ceil(self._at / alignment) * alignment
        self.tensors = [self._tensor(start, *header) for header in headers]

    def _take(self, size: int) -> bytes:
        if size > len(self._bytes) - self._at:
            raise RomeError(f"it ends too early, after {len(self._bytes):,} bytes")
        piece = self._bytes[self._at:self._at + size]
        self._at += size
        return piece

    def _scalar(self, form: str):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._take(self._scalar("<Q")).decode("utf-8")

    def _value(self, kind: int):
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise RomeError(f"it has a value of the unknown type {kind}")
        kind, count = self._scalar("<I"), self._scalar("<Q")
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise RomeError(f"it has an array of the unsupported type {kind}")
        piece = self._take(count * struct.calcsize(_SCALARS[kind]))
        return [value for (value,) in struct.iter_unpack(_SCALARS[kind], piece)]

    def _tensor_header(self) -> tuple[str, Type, tuple[int, ...], int]:
        name, dimensions = self._string(), self._scalar("<I")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))[::-1]
        return name, Type(self._scalar("<I")), shape, self._scalar("<Q")

    def _tensor(self, start: int, name: str, kind: Type, shape: tuple, offset: int) -> Tensor:
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or 0 in shape or shape[-1] % per_block:
            raise RomeError(f"tensor {name!r} has the shape {shape}, "
                            f"which {kind.name} blocks do not fill")
        row = shape[-1] // per_block * block_bytes
        size = math.prod(shape[:-1]) * row
        if start + offset + size > len(self._bytes):
            raise RomeError(f"it ends within tensor {name!r}, after {len(self._bytes):,} bytes")
        data = np.frombuffer(self._bytes, np.uint8, size, start + offset)
        if kind in _FLOATS:
            return Tensor(name, kind, shape, data.view(_FLOATS[kind]).reshape(shape))
        return Tensor(name, kind, shape, data.reshape(*shape[:-1], row))
