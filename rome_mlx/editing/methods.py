"""The editors by the names of the command line."""

from ..errors import RomeError
from .rome import p_rome, r_rome, rome

METHODS = {"rome": rome, "r-rome": r_rome, "p-rome": p_rome}


def method(name: str):
    """The editor of that name. Raises RomeError for an unknown one."""
    if name not in METHODS:
        raise RomeError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}")
    return METHODS[name]
