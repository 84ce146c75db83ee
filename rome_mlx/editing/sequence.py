"""Edits that follow one another, each computed on the model that carries those before it."""

from collections.abc import Callable, Iterable, Iterator

from ..errors import RomeError
from ..facts import EditRequest
from .edit import Edit
from .methods.rome import rome
from .requests import check_requests


def in_sequence(model, tokenizer, requests: Iterable[EditRequest],
                editor: Callable[..., Edit] = rome, layer=None, *, batch: int = 1,
                **options) -> Iterator[Edit]:
    """Yield one edit after another, applied to the model; at the end all are taken back.

        for edit in rm.in_sequence(model, tokenizer, requests, rm.r_rome, 8):
            ...                             # the model carries this edit and those before it

    editor: any of them; layer: its layer, or layers; batch: requests a call, more than 1 for
    editors of many; options: the editor's. The model is restored also when the loop is left.
    Raises RomeError for conflicting requests, wherever in the sequence they are.
    """
    requests, edits = check_requests(requests), []
    if batch < 1:
        raise RomeError(f"batch is {batch}; give the number of requests a call, 1 or more")
    try:
        for i in range(0, len(requests), batch):
            group = requests[i: i + batch]
            edits.append(editor(model, tokenizer, group if batch > 1 else group[0], layer,
                                **options))
            edits[-1].apply(model)
            yield edits[-1]
    finally:
        for edit in reversed(edits):
            if edit.is_applied(model):
                edit.revert(model)
