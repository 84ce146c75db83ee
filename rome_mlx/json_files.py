"""Files, written whole or not at all; JSON and JSONL are read too."""

import json
import os
import tempfile
from pathlib import Path

from .errors import RomeError


def write_json(path: str | Path | None, value) -> None:
    """Write a JSON file whole or not at all; nothing where path is None."""
    if path is not None:
        write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all. Raises RomeError where that cannot be."""
    try:
        write_bytes(Path(path).absolute(), text.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise RomeError(f"cannot write {str(path)!r}: {error.strerror}; free some space or "
                        "choose another file") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, beside its place first. Raises OSError."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


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
    except (ValueError, RecursionError) as error:
        raise RomeError(f"{str(path)!r} is not JSON ({error}); mend it") from error
