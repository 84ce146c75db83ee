"""Files, written whole or not at all; JSON and JSONL are read too."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .directories import system_error
from .errors import RomeError


def write_json(path: str | Path | None, value) -> None:
    """Write a JSON file whole or not at all; nothing where path is None."""
    if path is not None:
        write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all. Raises RomeError where that cannot be."""
    try:
        with in_one_piece(Path(path).absolute()) as temporary:
            temporary.write_text(text, "utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise RomeError(f"cannot write {str(path)!r}: {error.strerror}; free some space or "
                        "choose another file") from error


@contextmanager
def in_one_piece(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which then takes its place, or goes where writing fails.

    What a library in Rust says of the disk is raised as the OSError that it is.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except Exception as error:
        if disk := system_error(error):
            raise disk from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


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
