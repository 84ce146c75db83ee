"""JSON files: read as JSON or JSONL, written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path

from .errors import RomeError


def write_json(path: str | Path | None, value) -> None:
    """Write a JSON file whole or not at all; nothing where path is None."""
    if path is None:
        return
    target = Path(path).absolute()
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise RomeError(f"cannot write {str(path)!r}: {error.strerror}; "
                        "choose another file") from error


def read_json(path: str | Path):
    """A JSON file's value, or the list of a JSONL file's. Raises RomeError for what is neither."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RomeError(f"cannot read {str(path)!r}: {error}; give a JSON file") from error
    try:
        if Path(path).suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise RomeError(f"{str(path)!r} is not JSON ({error}); mend it") from error
