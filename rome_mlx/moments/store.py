"""Moments on disk: one safetensors file a layer, whole or not at all."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import RomeError
from ..models.identity import Identity, same
from ..storage.files import in_one_piece
from ..storage.places import cache_directory, data_path
from .second_moment import SecondMoment, Triangle

#: files of the first do not say of which model they are but by the layer's fingerprint, nor what
#: texts begin with: they were counted with nothing before them
FORMATS = ("rome-mlx moments 1", "rome-mlx moments 2")


def layer_path(directory: str | Path, layer: int) -> Path:
    return Path(directory) / f"layer-{layer}.safetensors"


def check_directory(directory: str | Path) -> None:
    """Raises RomeError where files cannot be put because something else is in the way."""
    if Path(directory).exists() and not Path(directory).is_dir():
        raise RomeError(f"{str(directory)!r} is not a directory; choose another --output")


def write_all(directory: str | Path, moments) -> None:
    """Write every layer of a Moments, each atomically; what a killed run left goes."""
    for layer, moment in moments.items():
        for left in Path(directory).glob(f".{layer_path(directory, layer).name}-*"):
            left.unlink(missing_ok=True)
        write(layer_path(directory, layer), moment, moments.about[layer])


def write(path: Path, moment, about: dict) -> None:
    """C's upper triangle and the keys' mean, float32, with what they are of.

    While a run is under way, also C as it was at fewer tokens (`moment.first`).
    """
    tensors = {"upper": moment.triangle().upper, "mean": moment.mean().astype(np.float32)}
    metadata = {**about, "count": moment.count, "format": FORMATS[-1],
                "versions": {name: version(name) for name in ("mlx", "mlx-lm")}}
    if moment.first is not None:
        tensors["first"], metadata["first_count"] = moment.first.upper, moment.first.count
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_one_piece(path) as temporary:
            save_file(tensors, temporary, {k: json.dumps(v) for k, v in metadata.items()})
    except OSError as error:
        raise RomeError(f"cannot write {path}: {error.strerror}; free some space or choose "
                        "another --output; what was saved before is whole") from error


def read_about(path: Path) -> dict:
    """The metadata of a moments file. Raises RomeError for a file that is not one."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise RomeError(f"{path} is not a moments file ({error}); remove it and make it again with "
                        "rome-mlx moments") from error
    if metadata.get("format") not in FORMATS:
        raise RomeError(f"{path} is not a moments file of rome-mlx; make it with "
                        "rome-mlx moments")
    return metadata


def read(path: Path) -> tuple[SecondMoment, dict]:
    """The moment and what it is of, from a file. Raises RomeError for a damaged one."""
    about = read_about(path)
    try:
        dim, counts = int(about["dim"]), {"upper": int(about["count"])}
        if "first_count" in about:
            counts["first"] = int(about.pop("first_count"))
        with safe_open(str(path), framework="numpy") as file:
            mean = file.get_tensor("mean")
            found = {name: Triangle(file.get_tensor(name), n) for name, n in counts.items()}
        size = dim * (dim + 1) // 2
        if mean.shape != (dim,) or not np.isfinite(mean).all() or any(
                t.upper.shape != (size,) or t.count < 1 or not np.isfinite(t.upper).all()
                for t in found.values()):
            raise ValueError(f"not the moments of {counts['upper']} keys {dim} wide")
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise RomeError(f"{path} is damaged ({error}); remove it and make it again") from error
    count = counts["upper"]
    return SecondMoment(dim, count, found["upper"].total(dim), mean.astype(np.float64) * count,
                        found.get("first")), about


def check(path: Path, found: dict, wanted: dict, also=()) -> None:
    """Raises RomeError where a file is of another layer, shape, model or (`also`) corpus, or was
    counted on texts that begin otherwise than the model's do."""
    for key in ("layer", "dim", *also):
        if found.get(key) != wanted[key]:
            raise RomeError(f"{path} was made for {key} {found.get(key)!r}, not {wanted[key]!r}; "
                            "give other moments or make them with rome-mlx moments")
    if (begins := found.get("begins_with", [])) != wanted["begins_with"]:
        raise RomeError(f"{path} was counted on texts that begin with the tokens {begins}, and "
                        f"this model's begin with {wanted['begins_with']}, which changes every "
                        "key; count them again with rome-mlx moments, in a new directory")
    if not same(found.get("fingerprint", []), wanted["fingerprint"]):
        raise RomeError(f"{path} was made for another model ({found.get('model')}), its weight "
                        "is not this model's; make moments for this one with rome-mlx moments")
    if "identity" in found:
        _check_identity(path, found, wanted)


def _check_identity(path: Path, found: dict, wanted: dict) -> None:
    try:
        counted, this = (Identity.from_json(about["identity"]) for about in (found, wanted))
    except (KeyError, TypeError, ValueError) as error:
        raise RomeError(f"{path} is damaged ({error}); remove it and make it again") from error
    if (difference := counted.difference(this)) is None:
        return
    if counted.unedited.difference(this.unedited) is None:
        raise RomeError(f"{path} was counted with {difference}, which changes the keys; revert the "
                        "edits and count again, or apply the same ones")
    raise RomeError(f"{path} was made for another model ({found.get('model')}: {difference}); make "
                    "moments for this one with rome-mlx moments")


def find(about: dict) -> Path | None:
    """A shipped or cached file for the layer that `about` describes, None where there is none.

    Of several the one of most tokens, then the shipped one, then the first by its path. Files of a
    count that was broken off are passed over.
    """
    found = []
    for cached, root in enumerate((data_path("moments"), moments_cache())):
        for path in root.glob(f"*/layer-{about['layer']}.safetensors"):
            try:
                other = read_about(path)
                check(path, other, about)
            except RomeError:
                continue
            if other.get("finished", True):
                found.append((-other["count"], cached, str(path)))
    return Path(min(found)[2]) if found else None


def sha256(upper: np.ndarray) -> str:
    """The content hash of an upper triangle, as it is stored."""
    return hashlib.sha256(np.ascontiguousarray(upper)).hexdigest()


def sha256_of(path: Path) -> str:
    """The content hash of a moments file's C. Raises RomeError for a damaged file."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return sha256(file.get_tensor("upper"))
    except (SafetensorError, OSError) as error:
        raise RomeError(f"{path} is damaged ({error}); remove it and make it again") from error


def moments_cache() -> Path:
    return cache_directory() / "moments"
