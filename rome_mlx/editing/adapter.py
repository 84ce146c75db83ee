"""An edit on disk: an mlx-lm adapter directory, with edit.json beside it."""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import RomeError
from ..facts import EditRequest
from .edit import Edit, LowRank
from .hyperparameters import hyperparameters

_FORMAT = "rome-mlx edit 1"
_FILES = ("adapters.safetensors", "adapter_config.json", "edit.json", "keys.safetensors")


def check_destination(directory: str | Path) -> Path:
    """The directory if an edit can be saved there: new, empty, or holding an earlier edit."""
    path = Path(directory)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RomeError(f"{str(path)!r} is not a directory; choose another path for the edit")
    if path.is_dir() and (others := sorted(set(os.listdir(path)) - set(_FILES))):
        raise RomeError(f"{str(path)!r} holds other files ({', '.join(others[:3])}); choose a "
                        "new directory for the edit")
    return path


def save_edit(edit: Edit, directory: str | Path) -> None:
    """Write the directory that `mlx_lm.generate --adapter-path` and `load_edit` read.

    All or nothing: it is written beside its place and moved there. An earlier edit is replaced.
    """
    path = check_destination(directory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise RomeError(f"cannot write {str(path)!r}: {error.strerror}; "
                        "choose another directory") from error
    try:
        os.chmod(temporary, 0o755)
        rank = max(d.rank for d in edit.deltas.values())
        save_file(_tensors(edit, rank), str(temporary / "adapters.safetensors"))
        _write_json(temporary / "adapter_config.json", {
            "fine_tune_type": "lora", "num_layers": -1, "model": edit.model.get("path"),
            "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0,
                                "keys": list(edit.deltas)}})
        _write_json(temporary / "edit.json", _about(edit))
        if edit.keys:
            save_file({path: np.ascontiguousarray(keys.T) for path, keys in edit.keys.items()},
                      str(temporary / "keys.safetensors"))
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise RomeError(f"cannot write {str(path)!r}: {error.strerror}; "
                        "choose another directory") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_edit(directory: str | Path) -> Edit:
    """Read a saved edit. Raises RomeError, naming the file, for anything that is not one."""
    path = Path(directory)
    if not path.is_dir():
        raise RomeError(f"there is no directory {str(path)!r}; give one that Edit.save wrote")
    about = _read_json(path / "edit.json")
    try:
        if about["format"] != _FORMAT:
            raise KeyError("format")
        tensors = load_file(str(path / "adapters.safetensors"))
        edit = Edit(
            method=str(about["method"]),
            requests=[EditRequest(**request) for request in about["requests"]],
            deltas={name: _delta(tensors, name, rank) for name, rank in about["ranks"].items()},
            layers=[int(layer) for layer in about["layers"]],
            hyperparameters=(hyperparameters(about["hyperparameters"], about["method"])
                             if about["hyperparameters"] else None),
            keys=_keys(path, about.get("keys", ())),
            **{name: about[name] for name in _PLAIN})
        fingerprints = {name: [float(x) for x in f] for name, f in edit.fingerprints.items()}
        if set(fingerprints) != set(edit.deltas):
            raise KeyError("fingerprints")
    except RomeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, OSError) as error:
        raise RomeError(f"{str(path)!r} is not a whole saved edit "
                        f"({type(error).__name__}: {error}); save it again") from error
    return edit


_PLAIN = ("context_templates", "losses", "seed", "fingerprints", "model", "versions", "numbers")


def _about(edit: Edit) -> dict:
    return {"format": _FORMAT, "method": edit.method,
            "request": dataclasses.asdict(edit.request),
            "requests": [dataclasses.asdict(r) for r in edit.requests],
            "layers": edit.layers, "ranks": {path: d.rank for path, d in edit.deltas.items()},
            "hyperparameters": (dataclasses.asdict(edit.hyperparameters)
                                if edit.hyperparameters else None),
            "keys": sorted(edit.keys), **{name: getattr(edit, name) for name in _PLAIN}}


def _tensors(edit: Edit, rank: int) -> dict[str, np.ndarray]:
    """lora_a (in, rank) and lora_b (rank, out) float32, padded with zeros: mlx-lm has one rank."""
    tensors = {}
    for path, delta in edit.deltas.items():
        more = rank - delta.rank
        tensors[f"{path}.lora_a"] = np.pad(delta.a, ((0, 0), (0, more))).astype(np.float32)
        tensors[f"{path}.lora_b"] = np.pad(delta.b, ((0, more), (0, 0))).astype(np.float32)
    return tensors


def _delta(tensors, path: str, rank: int) -> LowRank:
    a = tensors[f"{path}.lora_a"].astype(np.float64)[:, :rank]
    b = tensors[f"{path}.lora_b"].astype(np.float64)[:rank]
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != rank or b.shape[0] != rank or rank < 1 \
            or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"{path} has tensors of shapes {a.shape} and {b.shape} for rank {rank}")
    return LowRank(a, b)


def _keys(directory: Path, paths) -> dict[str, np.ndarray]:
    """Where the edit wrote: {module path: (d_in, n)}."""
    stored = load_file(str(directory / "keys.safetensors")) if paths else {}
    keys = {path: stored[path].astype(np.float64).T for path in paths}
    for path, found in keys.items():
        if found.ndim != 2 or not np.isfinite(found).all():
            raise ValueError(f"{path} has keys of shape {found.shape}")
    return keys


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RomeError(f"cannot read {path} ({error}); give a directory that Edit.save "
                        "wrote") from error
    if not isinstance(value, dict):
        raise RomeError(f"{path} is not an edit's description; save the edit again")
    return value
