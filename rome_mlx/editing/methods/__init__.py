"""Every editing method, a file each. A new one is a file here and a name in METHODS."""

from ...errors import RomeError
from ..method import Method
from .alphaedit import ALPHAEDIT
from .emmet import EMMET
from .finetune import FT, FT_L
from .lora import LORA
from .memit import MEMIT
from .rome import P_ROME, R_ROME, ROME
from .ultraedit import ULTRAEDIT

#: name -> Method
METHODS: dict[str, Method] = {method.name: method for method in (
    ROME, R_ROME, P_ROME, MEMIT, EMMET, ALPHAEDIT, ULTRAEDIT, FT, FT_L,
    LORA)}


def find_method(name: str) -> Method:
    """The method of that name. Raises RomeError, with the names there are, for an unknown one."""
    if name not in METHODS:
        raise RomeError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}")
    return METHODS[name]
