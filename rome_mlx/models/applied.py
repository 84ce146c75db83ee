"""Edits on a model's weights. Originals are kept, never computed back by subtraction.

The module that holds the weight carries a private list of what is applied. A float weight is
always the original plus the sum of what is applied, in the order it was applied; without any, it
is the original array itself. Beside a quantized weight goes a side adapter; where an edit changes
its codes, a module that shares all but the codes takes its place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from ..errors import RomeError
from .codes import CodeChange, recoded
from .hooks import find_module
from .weights import is_quantized, weight_shape

_clock = count()  # in what order edits were applied, over all weights


@dataclass
class Applied:
    """On the module in the model's place. `original`: the module with the weight as loaded."""

    original: nn.Module
    weight: mx.array
    edits: list = field(default_factory=list)  # (edit, LowRank, when it was applied)


def add(model, path: str, edit, delta) -> None:
    record = _record(model, path)
    record.edits.append((edit, delta, next(_clock)))
    _write(model, path, record)


def remove(model, path: str, edit) -> None:
    record = _record(model, path)
    record.edits = [entry for entry in record.edits if entry[0] is not edit]
    _write(model, path, record)


def applied_copy(model, path: str, edit):
    """The edit on a weight that is `edit` or does the same, such as the one saved file loaded
    twice; None where there is none."""
    record = record_of(holder(model, path)[2])
    for other, delta, _ in record.edits if record is not None else ():
        if other is edit or (type(delta) is type(edit.deltas[path])
                             and other.digest == edit.digest):
            return other
    return None


def record_of(module) -> Applied | None:
    """What is applied to the weight of a module, None where nothing is."""
    return getattr(module, "_rome_applied", None)


def edits_of(model) -> list:
    """The edits applied to a model, in the order they were applied."""
    records = (record_of(module) for _, module in model.named_modules())
    entries = [entry for record in records if record is not None for entry in record.edits]
    entries.sort(key=lambda entry: entry[2])
    return list({id(edit): edit for edit, *_ in entries}.values())


@contextmanager
def without_edits(model) -> Iterator[None]:
    """Take all applied edits back inside, and put them on again in their order after."""
    records = {path: record for path, module in model.named_modules()
               if (record := record_of(module)) is not None}
    held = {path: record.edits for path, record in records.items()}
    try:
        for path, record in records.items():
            record.edits = []
            _write(model, path, record)
        yield
    finally:
        for path, record in records.items():
            record.edits = held[path]
            _write(model, path, record)


def linear_shape(model, path: str) -> tuple[int, int]:
    """(out, in) of the linear module at a path. Raises RomeError where it is none."""
    _, _, module = holder(model, path)
    inner = module.linear if "linear" in module else module
    if not isinstance(inner, nn.Linear | nn.QuantizedLinear):
        raise RomeError(f"{path!r} is a {type(inner).__name__}, and only linear modules are "
                        "edited; list the paths with model.named_modules()")
    return weight_shape(inner)


def original(model, path: str) -> nn.Module:
    """The module at a path as it was loaded, below any adapter and any edit."""
    module = holder(model, path)[2]
    record = record_of(module)
    return module if record is None else record.original


def coded(model, path: str) -> nn.Module:
    """The module at a path with its codes as they are now, below any adapter."""
    module = holder(model, path)[2]
    return module.linear if "linear" in module else module


def holder(model, path: str):
    """(parent, name, module) of the module that the edits go on, below any adapter."""
    parent, _, name = path.rpartition(".")
    parent = find_module(model, parent) if parent else model
    module = parent[name]
    while "linear" in module and record_of(module) is None:
        parent, name, module = module, "linear", module["linear"]
    return parent, name, module


def _record(model, path: str) -> Applied:
    _, _, module = holder(model, path)
    record = record_of(module)
    return record if record is not None else Applied(module, module.weight)


def _write(model, path: str, record: Applied) -> None:
    parent, name, current = holder(model, path)
    module = record.original
    if is_quantized(module):
        changes = [d for _, d, _ in record.edits if isinstance(d, CodeChange)]
        sides = [d for _, d, _ in record.edits if not isinstance(d, CodeChange)]
        module = recoded(module, changes) if changes else module
        module = _adapted(module, sides) if sides else module
        parent[name] = module
    elif record.edits:
        a, b = (np.concatenate([getattr(d, x) for _, d, _ in record.edits], axis)
                for x, axis in (("a", 1), ("b", 0)))
        delta = mx.array((a @ b).T, dtype=mx.float32)
        module.weight = (record.weight.astype(mx.float32) + delta).astype(record.weight.dtype)
    else:
        module.weight = record.weight
    for m in {id(m): m for m in (current, module)}.values():
        if m is module and record.edits:
            object.__setattr__(m, "_rome_applied", record)
        elif hasattr(m, "_rome_applied"):
            object.__delattr__(m, "_rome_applied")


def _adapted(module: nn.Module, deltas: list) -> LoRALinear:
    """mlx-lm's own LoRA layer around a quantized module, with low-rank changes in it."""
    out, into = weight_shape(module)
    side = LoRALinear(into, out, r=sum(d.rank for d in deltas), scale=1.0)
    side.linear = module
    side.lora_a = mx.array(np.concatenate([d.a for d in deltas], 1), dtype=mx.float32)
    side.lora_b = mx.array(np.concatenate([d.b for d in deltas], 0), dtype=mx.float32)
    side.eval()
    return side
