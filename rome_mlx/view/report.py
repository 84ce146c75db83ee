"""Pages for people: what an edit did, what a benchmark measured, what was done to a model. One
HTML file each.

They fetch nothing, run no script but their own, which reads maps cell by cell and sorts tables, and
follow the reader's light or dark setting. Every text that comes from a request, a model or a file
is escaped.
"""

from pathlib import Path

from ..errors import RomeError
from ..storage.files import write_whole
from .audit_page import audit_page
from .benchmark_page import benchmark_page
from .compare import read_run
from .diff_page import diff_page
from .edit_page import edit_page

__all__ = ["audit_report", "benchmark_report", "diff_report", "edit_report"]


def edit_report(results, path: str | Path, *, adapter: str | None = None) -> Path:
    """Write the page of one `Result`, or of several that were written together.

    adapter: the directory where the edit was saved. The maps are traced for the first result: it
    takes as long as three traces. Raises RomeError where the file cannot be written.
    """
    return _write(path, lambda: edit_page(list(results), adapter))


def benchmark_report(run: str | Path, path: str | Path, *, settings: dict | None = None) -> Path:
    """Write the page of a benchmark's run; run: its directory, the `output` of `evaluate`.

    settings: what the run was made with, name -> value. Raises RomeError for a directory that is
    not of a run, and where the file cannot be written.
    """
    return _write(path, lambda: benchmark_page(read_run(run), settings or {}))


def diff_report(found, path: str | Path, *, settings: dict | None = None) -> Path:
    """Write the page of what `diff` found; settings: what was compared, name -> value."""
    return _write(path, lambda: diff_page(found, settings or {}))


def audit_report(found, path: str | Path, *, settings: dict | None = None) -> Path:
    """Write the page of what `audit` found; settings: what was audited, name -> value."""
    return _write(path, lambda: audit_page(found, settings or {}))


def _write(path: str | Path, make) -> Path:
    path = Path(path)
    if not path.absolute().parent.is_dir():  # before the maps are traced
        raise RomeError(f"cannot write {str(path)!r}: its directory does not exist; make it first")
    write_whole(path, make())
    return path
