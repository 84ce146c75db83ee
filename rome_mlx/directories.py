"""Directories that are written whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RomeError


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
