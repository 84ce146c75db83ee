"""A saved edit, read back as the Edit that it was."""

from pathlib import Path

from .adapter import read_edit, whole
from .edit import Edit
from .methods import METHODS


def load_edit(directory: str | Path) -> Edit:
    """Read a directory that `Edit.save` wrote. Raises RomeError, naming the file, for anything
    that is not one. Nothing in it is run."""
    fields = read_edit(directory)
    given = fields["hyperparameters"]
    with whole(Path(directory)):
        fields["hyperparameters"] = METHODS[fields["method"]].resolve(given) if given else None
    return Edit(**fields)
