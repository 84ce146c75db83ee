"""An edit on disk: an mlx-lm adapter directory, or changed codes, with edit.json beside it."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import RomeError
from ..facts import EditRequest
from ..models.codes import CodeChange
from ..models.identity import Identity
from ..storage.files import check_writable, whole_directory
from .lowrank import LowRank

_TARGETS = ".targets"  # after a weight's path, of what its keys are to give
_FORMAT = "rome-mlx edit 1"
_SEQUENCE = "sequence"  # a directory beside them, where a sequence of edits is kept
_CODES = "codes.safetensors"
CARD = "README.md"  # that tells others of the edit, and stays when it is saved again
_PARTS = ("rows", "columns", "steps", "values")  # of a CodeChange
_FILES = ("adapters.safetensors", "adapter_config.json", "edit.json", "keys.safetensors", _CODES)


def check_destination(directory: str | Path) -> Path:
    """The directory if an edit can be saved there: new, empty, or holding an earlier edit."""
    path = Path(directory)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RomeError(f"{str(path)!r} is not a directory; choose another path for the edit")
    if path.is_dir() and (others := sorted(set(os.listdir(path)) - {*_FILES, CARD, _SEQUENCE})):
        raise RomeError(f"{str(path)!r} holds other files ({', '.join(others[:3])}); choose a "
                        "new directory for the edit")
    check_writable(path)
    return path


def save_edit(edit, directory: str | Path) -> None:
    """Write the directory that `mlx_lm.generate --adapter-path` and `load_edit` read.

    An edit of codes has `codes.safetensors` in place of the adapter. All or nothing: it is written
    beside its place and moved there. An earlier edit is replaced; where a sequence goes on in the
    directory, file by file.
    """
    path = check_destination(directory)
    if len({type(delta) for delta in edit.deltas.values()}) > 1:
        raise RomeError("some weights of this edit are changed in their codes, others in float; "
                        "make all of it one kind with edit.quantized, or save the parts")
    if not (path / _SEQUENCE).is_dir():
        _write(edit, path)
        return
    made = path / _SEQUENCE / "saved"
    _write(edit, made)
    for name in _FILES:
        if (made / name).exists():
            os.replace(made / name, path / name)
    made.rmdir()


def _write(edit, path: Path) -> None:
    with whole_directory(path) as new:
        if edit.in_codes:
            save_file({f"{path}.{part}": getattr(delta, part)
                       for path, delta in edit.deltas.items() for part in _PARTS},
                      str(new / _CODES))
        else:
            rank = max(d.rank for d in edit.deltas.values())
            save_file(_tensors(edit, rank), str(new / "adapters.safetensors"))
            _write_json(new / "adapter_config.json", {
                "fine_tune_type": "lora", "num_layers": -1, "model": edit.model.get("path"),
                "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0,
                                    "keys": list(edit.deltas)}})
        _write_json(new / "edit.json", _about(edit))
        if edit.keys:
            save_file({path + suffix: np.ascontiguousarray(columns.T)
                       for suffix, some in (("", edit.keys), (_TARGETS, edit.targets))
                       for path, columns in some.items()}, str(new / "keys.safetensors"))
        if (path / CARD).is_file() and not (path / CARD).is_symlink():
            shutil.copyfile(path / CARD, new / CARD)


def read_edit(directory: str | Path) -> dict[str, Any]:
    """The fields of the Edit that a directory holds, its hyperparameters as a plain dict.

    Only the directory's own files are read, no links; nothing in them is run. Raises RomeError,
    naming the file, for anything that is not a whole saved edit.
    """
    path = Path(directory)
    if not path.is_dir():
        raise RomeError(f"there is no directory {str(path)!r}; give one that Edit.save wrote")
    for name in _FILES:
        if (path / name).is_symlink():
            raise RomeError(f"{path / name} is a symbolic link, which may lead anywhere; copy the "
                            "edit with its contents (cp -rL) and give the copy")
    about = _read_json(path / "edit.json")
    with whole(path):
        _check_description(about)
    config = {} if "codes" in about else _read_json(path / "adapter_config.json")
    with whole(path):
        return {
            "method": about["method"], "hyperparameters": about["hyperparameters"],
            "requests": [EditRequest(**request) for request in about["requests"]],
            "deltas": _codes(path, about) if "codes" in about else _ranks(path, about, config),
            **_keys(path, about.get("keys", ())), "moments": _moments(about),
            "details": dict(about.get("details", {})),
            **{name: about[name] for name in _PLAIN}}


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Say that a saved edit is damaged, and how, where reading it fails."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, OSError) as error:
        reason = (error if isinstance(error, RomeError)
                  else f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise RomeError(f"{str(path)!r} is not a whole saved edit ({reason}); "
                        "save it again") from error


#: what edit.json holds as it is in an Edit, and its types
_PLAIN = {"layers": list, "context_templates": list, "losses": list, "seed": int,
          "fingerprints": dict, "model": dict, "versions": dict, "numbers": dict}


def _check_description(about: dict) -> None:
    """Raises ValueError or KeyError where edit.json is not as written."""
    if about["format"] != _FORMAT:
        raise ValueError(f"edit.json has the format {about['format']!r}, not {_FORMAT!r}")
    deltas = "codes" if "codes" in about else "ranks"
    types = {**_PLAIN, "method": str, "requests": list, deltas: dict}
    wrong = [name for name, kind in types.items() if not isinstance(about[name], kind)]
    if wrong or not about["requests"] or not about[deltas]:
        raise ValueError(f"edit.json has unusable {', '.join(wrong) or f'requests or {deltas}'}")
    if not all(isinstance(layer, int) for layer in about["layers"]):
        raise ValueError("edit.json has layers that are no numbers")
    for name, numbers in about["fingerprints"].items():
        if len(numbers) < 3 or not np.isfinite(np.array(numbers, np.float64)).all():
            raise ValueError(f"edit.json has no usable fingerprint of {name}")
    path = about["model"].get("path")
    if path is not None and (not isinstance(path, str) or ".." in Path(path).parts):
        raise ValueError(f"edit.json names the model {path!r}")
    if (identity := about["model"].get("identity")) is not None:
        Identity.from_json(identity)


def _moments(about: dict) -> dict | None:
    """{layer: {"corpus", "tokens", "sha256"}}, None where the edit says nothing of a C."""
    found = about.get("moments")
    return None if found is None else {int(layer): dict(one) for layer, one in found.items()}


def _about(edit) -> dict:
    return {"format": _FORMAT, "method": edit.method,
            "request": dataclasses.asdict(edit.request),
            "requests": [dataclasses.asdict(r) for r in edit.requests],
            **({"codes": {path: d.base for path, d in edit.deltas.items()}} if edit.in_codes
               else {"ranks": {path: d.rank for path, d in edit.deltas.items()}}),
            "hyperparameters": (dataclasses.asdict(edit.hyperparameters)
                                if edit.hyperparameters else None),
            "keys": sorted(edit.keys), "moments": edit.moments, "details": edit.details,
            **{name: getattr(edit, name) for name in _PLAIN}}


def _tensors(edit, rank: int) -> dict[str, np.ndarray]:
    """lora_a (in, rank) and lora_b (rank, out) float32, padded with zeros: mlx-lm has one rank."""
    tensors = {}
    for path, delta in edit.deltas.items():
        more = rank - delta.rank
        a, b = delta.arrays  # in C's order: save_file writes memory as it lies
        tensors[f"{path}.lora_a"] = np.pad(a, ((0, 0), (0, more)))
        tensors[f"{path}.lora_b"] = np.pad(b, ((0, more), (0, 0)))
    return tensors


def _ranks(directory: Path, about: dict, config: dict) -> dict[str, LowRank]:
    adapter = config["lora_parameters"]
    if adapter["scale"] != 1.0 or set(adapter["keys"]) != set(about["ranks"]):
        raise ValueError("adapter_config.json is of another edit")
    tensors = load_file(str(directory / "adapters.safetensors"))
    return {name: _delta(tensors, name, rank, about["fingerprints"][name])
            for name, rank in about["ranks"].items()}


def _codes(directory: Path, about: dict) -> dict[str, CodeChange]:
    tensors, found = load_file(str(directory / _CODES)), {}
    for path, base in about["codes"].items():
        rows, columns, steps, values = (tensors[f"{path}.{part}"] for part in _PARTS)
        shape = tuple(int(size) for size in about["fingerprints"][path][:2])
        alike = rows.shape == columns.shape == steps.shape == values.shape == (len(rows),)
        whole = all(x.dtype == np.int32 for x in (rows, columns, steps))
        inside = alike and whole and all(not len(x) or (x.min() >= 0 and x.max() < size)
                                         for x, size in zip((rows, columns), shape, strict=True))
        if not inside or not np.isfinite(values).all() or not isinstance(base, str):
            raise ValueError(f"{path} has code changes that are none of a {shape[0]} × {shape[1]} "
                             "weight")
        found[path] = CodeChange(rows, columns, steps, values.astype(np.float32), shape, base)
    return found


def _delta(tensors, path: str, rank: int, fingerprint: list[float]) -> LowRank:
    a = tensors[f"{path}.lora_a"].astype(np.float64)[:, :rank]
    b = tensors[f"{path}.lora_b"].astype(np.float64)[:rank]
    out, into = fingerprint[:2]
    if rank < 1 or a.shape != (into, rank) or b.shape != (rank, out):
        raise ValueError(f"{path} has tensors of shapes {a.shape} and {b.shape} for rank {rank} "
                         f"and a {out:.0f} × {into:.0f} weight")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"{path} has numbers that are not finite")
    return LowRank(a, b)


def _keys(directory: Path, paths) -> dict[str, dict[str, np.ndarray]]:
    """Where the edit wrote, "keys": {module path: (d_in, n)}, and what it had to add there,
    "targets": {module path: (d_out, n)}, which edits of earlier versions do not have."""
    stored = load_file(str(directory / "keys.safetensors")) if paths else {}
    found = {path: array.astype(np.float64).T for path, array in stored.items()}
    for path, columns in found.items():
        if columns.ndim != 2 or not np.isfinite(columns).all():
            raise ValueError(f"{path} has keys of shape {columns.shape}")
    return {"keys": {path: found[path] for path in paths},
            "targets": {path: found[path + _TARGETS] for path in paths
                        if path + _TARGETS in found}}


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RomeError(f"cannot read {path} ({error}); give a directory that Edit.save "
                        "wrote") from error
    if not isinstance(value, dict):
        raise RomeError(f"{path} is not an edit's description; save the edit again")
    return value
