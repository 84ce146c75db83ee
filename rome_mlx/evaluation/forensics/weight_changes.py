"""Two models' weights, one at a time: where they differ, and by what kind of change."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...errors import RomeError
from ...models.codes import codes_of, scales_of
from ...models.streaming import let_go
from ...models.weights import is_quantized, weight
from .spectrum import Spectrum, spectrum

#: a weight is of low rank where no more than this part of its smaller side stands above the noise
_RANK = 0.25
#: and the noise is rounding, or no more than this part of the change
_SPREAD = 0.1
_EXPLAINED = 0.999  # of the numbers of a rounded weight
_KEPT = 64  # singular vectors of a spread change
_FLOAT32 = 1e-6  # ‖ΔW‖ / ‖W‖ that arithmetic in float32 leaves


@dataclass(frozen=True)
class WeightChange:
    """One array that differs.

    path: as the model has it; relative_norm: ‖ΔW‖ / ‖W‖, Frobenius; kind: "rounded" (to 16 bits,
    or by arithmetic in float32), "requantized", "low-rank" or "spread"; spectrum: of a matrix
    whose change rounding and grid do not explain number by number.
    """

    path: str
    relative_norm: float
    kind: str
    spectrum: Spectrum | None = field(default=None, repr=False)

    @property
    def rank(self) -> int | None:
        """Of a change of low rank."""
        return self.spectrum.rank if self.kind == "low-rank" else None

    def to_json(self) -> dict:
        return {"path": self.path, "relative_norm": self.relative_norm, "kind": self.kind,
                "rank": self.rank}


def changes(base: nn.Module, model: nn.Module, kept: Container[str] = ()
            ) -> Iterator[WeightChange | str]:
    """Every array that differs, as it is found, and the path of every one that does not.

    kept: paths of which the largest singular vectors are wanted even where the change is spread.
    Raises RomeError where the models are not of one shape.
    """
    ours, theirs = _modules(base), _modules(model)
    if ours.keys() != theirs.keys():
        path = sorted(ours.keys() ^ theirs.keys())[0]
        raise RomeError(f"only {'the base' if path in ours else 'the model'} has {path!r}: these "
                        "are models of two architectures; give two versions of one model")
    for path in [*ours]:
        for one in _of_module(path, ours[path], theirs[path]):
            if isinstance(one, WeightChange) and one.kind == "spread" and one.spectrum:
                one = replace(one, spectrum=one.spectrum.largest(_KEPT) if path in kept else None)
            yield one
        let_go(base)
        let_go(model)


def _of_module(path: str, one: nn.Module, other: nn.Module) -> Iterator[WeightChange | str]:
    if is_matrix(one):
        yield compared(path, one, other)
    for name, before, after in _vectors(path, one, other):
        yield _vector(name, before, after)


def is_matrix(module: nn.Module) -> bool:
    """Whether it has a weight (out, in)."""
    module = module.linear if "linear" in module else module
    return is_quantized(module) or (
        isinstance(module.get("weight"), mx.array) and module.weight.ndim == 2)


def effective(module: nn.Module) -> np.ndarray:
    """The weight (out, in) float32 that a module works with, an adapter on it included; not to be
    written into."""
    if "linear" not in module:
        return np.array(weight(module), copy=False)
    added = module.scale * (module.lora_b.T @ module.lora_a.T).astype(mx.float32)
    return effective(module.linear) + np.array(added)


def compared(path: str, one: nn.Module, other: nn.Module) -> WeightChange | str:
    """The change of one matrix, or its path where there is none."""
    before, after = effective(one), effective(other)
    if before.shape != after.shape:
        raise RomeError(f"{path} is {before.shape} in the base and {after.shape} in the model; "
                        "give two versions of one model")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise RomeError(f"{path} holds numbers that are not finite: the file is damaged, or the "
                        "model is broken")
    if np.array_equal(before, after):
        return path
    change = after - before
    norm = float(np.linalg.norm(change) / max(np.linalg.norm(before), 1e-30))
    if norm < _FLOAT32 or _rounds(before, after):
        return WeightChange(path, norm, "rounded")
    grid = _grid(one, other)
    if grid is not None and _on_grid(change, grid):
        return WeightChange(path, norm, "requantized")
    left = _rounding(before, after, None if grid is None else scales_of(grid))
    found = spectrum(change.astype(np.float64), left)
    rounding = left is not None and found.noise <= 2 * np.sqrt(left.mean())
    low = 0 < found.rank <= _RANK * min(change.shape) and (found.share > 1 - _SPREAD or rounding)
    if found.rank == 0 and rounding:
        return WeightChange(path, norm, "requantized" if grid is not None else "rounded", found)
    return WeightChange(path, norm, "low-rank" if low else "spread", found)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """{path: module} of all that hold arrays of their own; an adapted one is one module."""
    found = {}
    for path, module in model.named_modules():
        if any(isinstance(value, mx.array) for value in module.values()) or "linear" in module:
            found[path] = module
    adapted = {f"{path}." for path, module in found.items() if "linear" in module}
    return {path: module for path, module in sorted(found.items())
            if not any(path.startswith(prefix) for prefix in adapted)}


def _vectors(path: str, one: nn.Module, other: nn.Module) -> Iterator[tuple]:
    """(path, array, array) of what is no matrix: biases, norms."""
    skipped = {"scales", "biases", "lora_a", "lora_b", "scale"} | (
        {"weight"} if is_matrix(one) else set())
    one, other = (module.linear if "linear" in module else module for module in (one, other))
    for name, value in one.items():
        if isinstance(value, mx.array) and name not in skipped:
            yield f"{path}.{name}", value, other.get(name)


def _vector(path: str, one: mx.array, other: mx.array | None) -> WeightChange | str:
    if other is None or one.shape != other.shape:
        raise RomeError(f"{path} is not of one shape in the two models; give two versions of one "
                        "model")
    before, after = (np.array(x.astype(mx.float32)) for x in (one, other))
    change = after - before
    if not change.any():
        return path
    norm = float(np.linalg.norm(change) / max(np.linalg.norm(before), 1e-30))
    rounded = norm < _FLOAT32 or _rounds(before, after)
    return WeightChange(path, norm, "rounded" if rounded else "spread")


def _rounds(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether one is the other, rounded to bfloat16 or float16."""
    for one, other in ((before, after), (after, before)):
        for dtype in (mx.bfloat16, mx.float16):
            rounded = np.array(mx.array(one).astype(dtype).astype(mx.float32))
            if np.array_equal(rounded, other):
                return True
    return False


def _grid(*modules: nn.Module) -> nn.Module | None:
    """The coarser quantized one."""
    modules = [module.linear if "linear" in module else module for module in modules]
    return max((module for module in modules if is_quantized(module) and module.mode == "affine"),
               key=lambda one: mx.abs(one.scales).mean().item(), default=None)


def _on_grid(change: np.ndarray, grid: nn.Module) -> bool:
    """Whether nearly every number moved by no more than rounding to the codes of a quantized
    module moves it: half a step, or at the ends of the codes, where MLX cuts, a whole one."""
    codes, step = codes_of(grid), np.abs(scales_of(grid))
    most = np.where((codes == 0) | (codes == 2**grid.bits - 1), 1.01, 0.51) * step + 1e-7
    return float(np.mean(np.abs(change) <= most)) >= _EXPLAINED


def _rounding(before: np.ndarray, after: np.ndarray, step: np.ndarray | None
              ) -> np.ndarray | None:
    """(out, in): the variance that storing would leave, that of the grid, or of bfloat16 where
    one of both is in it; None where neither is."""
    if step is not None:
        return step.astype(np.float64) ** 2 / 12
    for array in (before, after):
        if np.array_equal(np.array(mx.array(array).astype(mx.bfloat16).astype(mx.float32)), array):
            # eight bits: errors up to half of 2⁻⁷ of the power of two below
            return (array.astype(np.float64) * 2**-8) ** 2 / 3
    return None

