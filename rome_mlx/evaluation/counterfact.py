"""CounterFact records, in the authors' format."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import RomeError
from ..facts import EditRequest
from ..json_files import read_json


@dataclass(frozen=True)
class Case:
    """One record: what to write, other ways to ask it, and other subjects of the same relation.

    The neighbors' answer is the request's target_true.
    """

    case_id: int
    request: EditRequest
    paraphrases: tuple[str, ...]
    neighbors: tuple[str, ...]
    relation: str | None = None


def read_counterfact(path: str | Path, limit: int | None = None,
                     relation: str | None = None) -> list[Case]:
    """The first `limit` cases of a JSON file, of one relation if asked.

    Raises RomeError that names the record for anything that is not a CounterFact record.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise RomeError(f"{str(path)!r} holds no list of CounterFact records")
    cases = [_case(path, i, record) for i, record in enumerate(records)]
    cases = [c for c in cases if relation is None or c.relation == relation]
    if not cases:
        raise RomeError(f"{str(path)!r} has no record of relation {relation!r}")
    if len({case.case_id for case in cases}) < len(cases):
        raise RomeError(f"{str(path)!r} has two records with one case_id; number them apart")
    return cases[:limit]


def _case(path, index: int, record) -> Case:
    try:
        rewrite = record["requested_rewrite"]
        request = EditRequest(rewrite["prompt"], rewrite["subject"],
                              rewrite["target_new"]["str"], rewrite["target_true"]["str"])
        prompts = [tuple(record[name]) for name in ("paraphrase_prompts", "neighborhood_prompts")]
        if not request.target_true or not request.target_true.strip():
            raise RomeError("target_true is empty; give the true answer")
        if any(not isinstance(p, str) or not p.strip() for group in prompts for p in group):
            raise RomeError("a prompt is empty or not a text")
        return Case(int(record["case_id"]), request, *prompts, rewrite.get("relation_id"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RomeError(f"{str(path)!r}, record {index}: not a CounterFact record "
                        f"({type(error).__name__}: {error})") from error
