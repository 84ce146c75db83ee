"""Moments on disk: one safetensors file a layer, whole or not at all."""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..data_files import cache_directory, data_path
from ..errors import RomeError
from ..fingerprint import same


def layer_path(directory: str | Path, layer: int) -> Path:
    return Path(directory) / f"layer-{layer}.safetensors"


def check_directory(directory: str | Path) -> None:
    """Raises RomeError where files cannot be put because something else is in the way."""
    if Path(directory).exists() and not Path(directory).is_dir():
        raise RomeError(f"{str(directory)!r} is not a directory; choose another --output")


def write_all(directory: str | Path, moments) -> None:
    """Write every layer of a Moments, each atomically."""
    for layer, moment in moments.items():
        write(layer_path(directory, layer), moment, moments.about[layer])


def write(path: Path, moment, about: dict) -> None:
    """The upper triangle of Σ k kᵀ / count and the mean, float32, with what they are of."""
    rows, columns = np.triu_indices(moment.dim)
    tensors = {"upper": moment.value()[rows, columns].astype(np.float32),
               "mean": moment.mean().astype(np.float32)}
    metadata = {**about, "count": moment.count, "format": "rome-mlx moments 1",
                "versions": {name: version(name) for name in ("mlx", "mlx-lm")}}
    data = save(tensors, {key: json.dumps(value) for key, value in metadata.items()})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RomeError(f"cannot write {path}: {error.strerror}; free some space or choose "
                        "another --output; what was saved before is whole") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def read_about(path: Path) -> dict:
    """The metadata of a moments file. Raises RomeError for a file that is not one."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise RomeError(f"{path} is not a moments file ({error}); make it again with "
                        "rome-mlx moments") from error
    if metadata.get("format") != "rome-mlx moments 1":
        raise RomeError(f"{path} is not a moments file of rome-mlx; make it with "
                        "rome-mlx moments")
    return metadata


def read(path: Path):
    """(SecondMoment, about) from a file."""
    from .estimator import SecondMoment

    about = read_about(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            upper, mean = file.get_tensor("upper"), file.get_tensor("mean")
        dim, count = int(about["dim"]), int(about["count"])
        matrix = np.zeros((dim, dim))
        matrix[np.triu_indices(dim)] = upper
        if mean.shape != (dim,) or count < 1 or not np.isfinite(upper).all():
            raise ValueError(f"not the moments of {count} keys {dim} wide")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RomeError(f"{path} is damaged ({error}); make it again") from error
    matrix += np.triu(matrix, 1).T
    return SecondMoment(dim, count, matrix * count, mean.astype(np.float64) * count), about


def check(path: Path, found: dict, wanted: dict, also=()) -> None:
    """Raises RomeError where a file is of another layer, shape, model or (`also`) corpus."""
    for key in ("layer", "dim", *also):
        if found.get(key) != wanted[key]:
            raise RomeError(f"{path} was made for {key} {found.get(key)!r}, not {wanted[key]!r}; "
                            "give other moments or make them with rome-mlx moments")
    if not same(found.get("fingerprint", []), wanted["fingerprint"]):
        raise RomeError(f"{path} was made for another model ({found.get('model')}), its weight "
                        "is not this model's; make moments for this one with rome-mlx moments")


def find(about: dict) -> Path | None:
    """A shipped or cached file for the layer that `about` describes; most tokens first."""
    found = []
    for root in (data_path("moments"), moments_cache()):
        for path in root.glob(f"*/layer-{about['layer']}.safetensors"):
            try:
                other = read_about(path)
                check(path, other, about)
            except RomeError:
                continue
            found.append((other["count"], path))
    return max(found)[1] if found else None


def moments_cache() -> Path:
    return cache_directory() / "moments"
