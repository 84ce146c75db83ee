"""An edit written into a full mlx-lm model on disk, and what rounding cost."""

import os
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import hf_repo_to_path, load_config, save

from ..errors import RomeError
from ..models.codes import CodeChange, recoded
from ..models.hooks import find_module
from ..models.identity import original_weight
from ..models.weights import cast, dequantized, is_quantized
from ..storage.files import check_writable, whole_directory, write_json
from .edit import Edit

FUSED = "rome_mlx.json"  # beside the model's own files: what was written into it

def fuse(model, tokenizer, edit: Edit, directory: str | Path, *, source: str | Path,
         dequantize: bool = False, force: bool = False) -> dict[str, float]:
    """Write a full model with the edit in its weights; returns {module path: ‖error‖ / ‖ΔW‖}.

    model: as loaded from `source`, a directory or hub id, and used up by this. On a quantized
    model the edited modules become float, unless it is their codes that the edit changes
    (`Edit.quantized`); the others stay as they are; dequantize: all become float. The error is what
    storing W + ΔW in the model's float type lost of ΔW. Raises RomeError where `directory` holds
    something or, unless `force`, the edit is of another model.
    """
    path = check_new(directory)
    with edit.applied(model, force=force):  # every check that applying makes
        pass
    dtype, changed = _float_type(model), edit.norm_change(model)
    lost = {name: _write(model, name, delta, dtype) for name, delta in edit.deltas.items()}
    coded = {name for name, delta in edit.deltas.items() if isinstance(delta, CodeChange)}
    if dequantize:
        cast(model, dtype)
    config = load_config(_local(source))
    if dequantize:
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    for name in set(edit.deltas) - coded:
        for key in ("quantization", "quantization_config"):
            config.get(key, {}).pop(name, None)
    with whole_directory(path) as new:
        save(new, str(source), model, tokenizer, config, donate_model=False)
        write_json(new / FUSED, {
            "method": edit.method, "model": str(source), "lost": lost,
            "norm_change": changed, "numbers": edit.numbers,
            "requests": [vars(request) for request in edit.requests]})
    return lost


def check_new(directory: str | Path) -> Path:
    """The directory if a model can be written there: new or empty. Raises RomeError otherwise."""
    path = Path(directory)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or os.listdir(path))):
        raise RomeError(f"{str(path)!r} is there already; choose a new directory")
    check_writable(path)
    return path


def _write(model, name: str, delta, dtype: mx.Dtype) -> float:
    """Put W + ΔW in the module's place; returns ‖stored - W - ΔW‖ / ‖ΔW‖."""
    module = find_module(model, name)
    if isinstance(delta, CodeChange):
        parent, _, last = name.rpartition(".")
        find_module(model, parent)[last] = recoded(module, [delta])
        return 0.0
    before = np.array(original_weight(module), np.float64)
    change = delta.change.T
    if is_quantized(module):
        parent, _, last = name.rpartition(".")
        module = dequantized(module, dtype)
        find_module(model, parent)[last] = module
    module.weight = mx.array(before + change, dtype=mx.float32).astype(dtype)
    stored = np.array(module.weight.astype(mx.float32), np.float64)
    return float(np.linalg.norm(stored - before - change) / np.linalg.norm(change))


def _float_type(model: nn.Module) -> mx.Dtype:
    """The type of the model's norms, which no quantization touches."""
    return next(module.weight.dtype for _, module in model.named_modules()
                if isinstance(module, nn.RMSNorm | nn.LayerNorm))


def _local(source: str | Path) -> Path:
    return Path(source) if Path(source).exists() else hf_repo_to_path(str(source))
