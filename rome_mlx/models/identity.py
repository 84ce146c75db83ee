"""Which model is this? The one answer, for edits, moments, runs and caches.

A hash would call the same model on another machine another one: devices dequantize with different
last bits. So weights are compared by projections on random sign vectors, with a tolerance that no
training step passes. Adapters and edits are small and come from files: they are hashed.
Sums are numpy's, in float64: MLX's are off by a percent for a large weight on a CPU, not on a GPU.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..accel.packed import dequantize
from ..storage.files import read_json
from .applied import edits_of, record_of
from .streaming import let_go
from .weights import is_quantized, weight

_TOLERANCE = 1e-5  # of a weight's projections, relative to its norm
_PROJECTIONS = 8
_ROWS = 8  # of each array that an identity reads
_NUMBERS = 16
_BASE_TOLERANCE = 1e-4  # one array changed by more than this, relative to itself, is seen
_BLOCK = 512  # rows of a weight at a time


@dataclass(frozen=True)
class Identity:
    """A model's base weights, the adapters on them, and the edits applied to it.

    base: 16 numbers made of sampled rows of every array, dequantized, with adapters and edits set
    aside: the same for a 4-bit model and its float32 copy; adapters: hash of their arrays, None
    without any; edits: hashes of the applied edits, in their order.
    """

    base: tuple[float, ...]
    adapters: str | None = None
    edits: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Identity":
        """The identity of a model as it is now. Reads 8 rows of every array."""
        return cls(_base(model), _adapters(model), tuple(edit.digest for edit in edits_of(model)))

    @classmethod
    def from_json(cls, value) -> "Identity":
        """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
        base = tuple(float(number) for number in value["base"])
        if len(base) != _NUMBERS or not np.isfinite(base).all():
            raise ValueError(f"{len(base)} numbers are no model's identity")
        return cls(base, value["adapters"], tuple(value["edits"]))

    def to_json(self) -> dict:
        return {"base": list(self.base), "adapters": self.adapters, "edits": list(self.edits)}

    @property
    def unedited(self) -> "Identity":
        """The same model with its edits taken back."""
        return replace(self, edits=())

    @property
    def digest(self) -> str:
        """A name for files in a cache: rounded, so now and then one model has two."""
        rounded = json.dumps([[round(x, 3) + 0.0 for x in self.base], self.adapters, self.edits])
        return hashlib.sha256(rounded.encode()).hexdigest()[:16]

    def same_base(self, other: "Identity") -> bool:
        return np.allclose(self.base, other.base, rtol=0, atol=_BASE_TOLERANCE)

    def difference(self, other: "Identity") -> str | None:
        """What sets this model apart from the other, in words; None where they are the same."""
        if not self.same_base(other):
            return "other weights"
        if self.adapters != other.adapters:
            return "other adapters" if self.adapters and other.adapters else (
                "an adapter" if self.adapters else "no adapter")
        if self.edits != other.edits:
            return (f"{len(self.edits)} edits applied" if len(self.edits) != len(other.edits)
                    else "other edits applied")
        return None


def stored_for(model: nn.Module, paths: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    """Those of JSON files whose "identity" is this model's with its edits taken back, and what
    they hold; damaged ones are passed over."""
    paths, now = list(paths), None
    for path in paths:
        now = now or Identity.of(model).unedited
        try:
            found = read_json(path)
            if Identity.from_json(found["identity"]).difference(now) is None:
                yield path, found
        except (ValueError, KeyError, TypeError):
            continue


def _base(model: nn.Module) -> tuple[float, ...]:
    found = {}
    for name, sampled in _sampled(model, ""):
        found[name] = sampled
        let_go(model, sampled)
    mx.eval(found)
    total = np.zeros(_NUMBERS)
    for name, sampled in found.items():
        rows = np.array(sampled, np.float64)
        norm = max(np.linalg.norm(rows), 1e-15)
        numbers = np.append(rows @ _signs(rows.shape[1]) / norm, np.log(norm))
        total += _mixing(name, len(numbers)) @ numbers
    return tuple(float(f"{x:.9g}") for x in total)


def _sampled(node, path: str) -> Iterator[tuple[str, mx.array]]:
    """(name, rows (8 or fewer, width) float32) of every base array below a module, list or dict;
    names are those of a model without adapters and edits."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if (record := record_of(node)) is not None:
        node = record.original
    adapter = _is_adapter(node)
    for name, value in node.items():
        inside = path if adapter else f"{path}.{name}"
        if isinstance(value, dict | list | tuple):
            yield from _sampled(value, inside)
        elif isinstance(value, mx.array) and not adapter and not str(name).startswith("_"):
            if name == "weight" and record is not None and not is_quantized(node):
                value = record.weight
            if name not in ("scales", "biases") or "scales" not in node:
                yield inside, _rows(inside, node if name == "weight" else {}, value)


def _rows(name: str, module, array: mx.array) -> mx.array:
    """(8 or fewer, width) float32: rows of an array, drawn by its name; dequantized."""
    index = None

    def drawn(x):
        flat = x.reshape(-1, x.shape[-1] if x.ndim else 1)
        return flat if index is None else flat[index]

    count = array.size // (array.shape[-1] if array.ndim else 1)
    if count > _ROWS:
        index = _drawn_rows(name, count)
    if "scales" not in module:
        return drawn(array).astype(mx.float32)
    return dequantize(module, drawn)


def _is_adapter(node) -> bool:
    """Whether a module is one of mlx-lm's adapters around another module."""
    return "lora_a" in node and ("linear" in node or "embedding" in node)


def _adapters(model: nn.Module) -> str | None:
    """A hash of all adapters' own arrays and scales, but for edits' side adapters."""
    digest, there = hashlib.sha256(), False
    for path, module in sorted(model.named_modules(), key=lambda pair: pair[0]):
        if not _is_adapter(module) or record_of(module) is not None:
            continue
        there = True
        digest.update(f"{path} {getattr(module, 'scale', 1.0)}".encode())
        for name in sorted(module):
            if isinstance(module[name], mx.array):
                digest.update(np.array(module[name].astype(mx.float32)).tobytes())
    return digest.hexdigest()[:16] if there else None


@lru_cache(maxsize=4096)
def _drawn_rows(name: str, count: int) -> mx.array:
    """(8,) of `count` rows, drawn by an array's name."""
    return mx.array(np.random.RandomState(crc32(name.encode())).randint(0, count, _ROWS))


@lru_cache(maxsize=4096)
def _mixing(name: str, numbers: int) -> np.ndarray:
    """(16, numbers) signs, drawn by an array's name, with which it enters the sum."""
    return np.random.RandomState(crc32(name.encode())).choice([-1.0, 1.0], (_NUMBERS, numbers))


@lru_cache(maxsize=64)
def _signs(width: int) -> np.ndarray:
    return np.random.RandomState(width).choice([-1.0, 1.0], width)


def fingerprint(module: nn.Module) -> list[float]:
    """[out, in, norm, 8 projections by it] of a linear module's original weight: what an edit says
    of each weight that it is for.

    Applied edits are set aside, adapters too.
    """
    w = original_weight(module)
    out, into = w.shape
    signs = np.random.RandomState(0)
    left = signs.choice([-1.0, 1.0], (_PROJECTIONS, out))
    right = signs.choice([-1.0, 1.0], (_PROJECTIONS, into))
    square, projections = 0.0, np.zeros(_PROJECTIONS)
    for start in range(0, out, _BLOCK):
        rows = np.array(w[start: start + _BLOCK], np.float64)
        square += np.vdot(rows, rows)
        projections += ((left[:, start: start + _BLOCK] @ rows) * right).sum(axis=1)
    norm = square ** 0.5
    return [float(out), float(into), float(norm), *(projections / norm).tolist()]


def same(one: list[float], other: list[float]) -> bool:
    """Whether two fingerprints are of the same weight, up to rounding. Projections are compared as
    they were before they were divided by the norm, which version 0.1 computed badly on a CPU."""
    if len(one) != len(other) or one[:2] != other[:2]:
        return False
    projections = [np.multiply(x[3:], x[2]) for x in (one, other)]
    return np.allclose(*projections, rtol=0, atol=_TOLERANCE * abs(other[2]))


def original_weight(module: nn.Module) -> mx.array:
    """A linear module's weight (out, in) as it was loaded: no adapter, no applied edit."""
    while (record := record_of(module)) is None and "linear" in module:
        module = module.linear
    if record is None:
        return weight(module)
    return weight(record.original) if is_quantized(record.original) \
        else record.weight.astype(mx.float32)
