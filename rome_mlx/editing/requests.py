"""The requests of one call: one or many, none of them against another."""

from collections.abc import Iterable

from ..errors import RomeError
from ..facts import EditRequest


def check_requests(requests: EditRequest | Iterable[EditRequest]) -> list[EditRequest]:
    """The requests as a list, without repetitions.

    Raises RomeError for none, and, naming them, for two that want different targets after the
    same prompt and subject, however spaced.
    """
    requests = [requests] if isinstance(requests, EditRequest) else list(dict.fromkeys(requests))
    if not requests:
        raise RomeError("there is no request; give one EditRequest or more")
    wanted: dict[str, str] = {}
    for request in requests:
        text, target = " ".join(request.text.split()), " ".join(request.target_new.split())
        if (other := wanted.setdefault(text, target)) != target:
            raise RomeError(f"conflicting requests: {request.text!r} should go on with both "
                            f"{other!r} and {target!r}; keep one of them")
    return requests


def check_request(request: EditRequest) -> EditRequest:
    """The one request of a rank-one editor. Raises RomeError for a list and anything else."""
    if isinstance(request, EditRequest):
        return request
    raise RomeError(f"rome, r_rome and p_rome write one EditRequest a call, not a "
                    f"{type(request).__name__}; give the requests one by one, or all of them to "
                    "rm.in_sequence or an editor of many, such as rm.memit")
