"""The requests of one call: one or many, none of them against another."""

from collections.abc import Iterable

from ..errors import RomeError
from ..facts import EditRequest


def check_requests(requests: EditRequest | Iterable[EditRequest]) -> list[EditRequest]:
    """The requests as a list, without repetitions.

    Raises RomeError for none, and, naming them, for two that want different targets after the
    same prompt and subject.
    """
    requests = [requests] if isinstance(requests, EditRequest) else list(dict.fromkeys(requests))
    if not requests:
        raise RomeError("there is no request; give one EditRequest or more")
    wanted: dict[str, str] = {}
    for request in requests:
        target = request.target_new.strip()
        if (other := wanted.setdefault(request.text, target)) != target:
            raise RomeError(f"conflicting requests: {request.text!r} should go on with both "
                            f"{other!r} and {target!r}; keep one of them")
    return requests
