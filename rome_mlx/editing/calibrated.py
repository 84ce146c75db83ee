"""What calibration found for a model: hyperparameters and layers by method, kept in the cache."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import RomeError
from ..models.architectures import model_type
from ..models.decoder import Decoder
from ..models.identity import Identity, stored_for
from ..storage.files import write_json
from ..storage.places import cache_directory


def stored_calibration(decoder: Decoder) -> dict | None:
    """The calibration of this model with its edits taken back, the latest; None without one."""
    found = [(path.stat().st_mtime, one)
             for path, one in stored_for(decoder.model, _directory().glob("*.json"))
             if isinstance(one.get("presets"), dict)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def keep_calibration(calibration: dict) -> Path:
    """Keep a calibration's JSON in the cache; where it is."""
    _directory().mkdir(parents=True, exist_ok=True)
    path = _directory() / f"{Identity.from_json(calibration['identity']).digest}.json"
    write_json(path, calibration)
    return path


def is_path(given) -> bool:
    """Whether what a caller gave as hyperparameters is a file of them, not a preset's name."""
    return isinstance(given, Path) or (isinstance(given, str) and given.endswith(".json"))


def is_calibration(given) -> bool:
    return isinstance(given, Mapping) and "presets" in given


def sizes(decoder: Decoder) -> dict:
    """What a calibration handed on has to share with the model it is used for."""
    return {"type": model_type(decoder.model), "layers": len(decoder.layers), "dim": decoder.dim}


def preset_of(calibration: Mapping, method: str, decoder: Decoder | None) -> dict:
    """What a calibration found for a method, {name: value}, its layers among them.

    decoder: the model that it is to serve: another copy of the one that was calibrated, in 4 bits
    perhaps. Raises RomeError for a model of another size, a method that it does not have and a
    file that is not what it should be.
    """
    try:
        presets, about = calibration["presets"], calibration["model"]
        if decoder is not None and (other := [name for name, value in sizes(decoder).items()
                                              if about[name] != value]):
            raise RomeError(f"the calibration is of another model, with {other[0]} "
                            f"{about[other[0]]!r}, not {sizes(decoder)[other[0]]!r}; make one "
                            "with rome-mlx calibrate")
        if method not in presets:
            raise RomeError(f"the calibration has nothing for {method}, only for "
                            f"{', '.join(sorted(presets))}; choose one of these")
        return {**presets[method]["hyperparameters"], "layers": presets[method]["layers"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise RomeError(f"this is no calibration that rome-mlx calibrate wrote "
                        f"({type(error).__name__}: {error}); make one anew") from error


def _directory() -> Path:
    return cache_directory() / "calibrations"
