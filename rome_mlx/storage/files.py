"""Files and directories that are written whole or not at all; JSON and JSONL are read too."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RomeError


def check_writable(path: str | Path) -> None:
    """Raises RomeError where nothing can be written below the first directory above `path`."""
    above = Path(path).absolute().parent
    while not above.exists():
        above = above.parent
    if not os.access(above, os.W_OK | os.X_OK):
        raise RomeError(f"cannot write {str(path)!r}: {str(above)!r} cannot be written; choose "
                        "another place")


def system_error(error: Exception) -> OSError | None:
    """The OSError that a library in Rust has put into words, "… (os error 28)"; None for others."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """A new directory to fill, which takes the place of `path` when the context ends well.

    It lies beside its place until then. What was there before goes when the new one is in; after
    an error it is there as it was. Raises RomeError where nothing can be written.
    """
    path = Path(path)
    beside = {"dir": path.parent, "prefix": f".{path.name}-"}
    made = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(Path(tempfile.mkdtemp(**beside)))
        os.chmod(made[0], 0o755)
        yield made[0]
        for file in made[0].iterdir():  # safetensors lets nobody else read
            file.chmod(0o644)
        if not path.exists():
            os.replace(made[0], path)
            return
        made.append(Path(tempfile.mkdtemp(**beside)))
        os.replace(path, made[1])
        try:
            os.replace(made[0], path)
        except OSError:
            os.replace(made[1], path)
            raise
    except Exception as error:
        if not isinstance(error, OSError | RuntimeError) and system_error(error) is None:
            raise  # RuntimeError: mlx's, where its files do not fit
        error = system_error(error) or error
        reason = getattr(error, "strerror", None) or error
        raise RomeError(f"cannot write {str(path)!r}: {reason}; free some space or choose another "
                        "directory") from error
    finally:
        for directory in made:
            shutil.rmtree(directory, ignore_errors=True)


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
