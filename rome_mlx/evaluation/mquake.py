"""MQuAKE: what follows from a fact, asked in two to four hops (Zhong et al. 2305.14795)."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..facts import EditRequest
from ..storage.places import data_path
from .cases import BenchmarkCase
from .records import read_cases, text, texts


class Hop(NamedTuple):
    """One step of a chain as it is after the edit: how it is asked, and the right answers."""

    question: str
    cloze: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ChainCase(BenchmarkCase):
    """One record: the edits of a chain, questions that ask for its end, the answers to them before
    and after the edits, and its single steps. clozes: the questions as beginnings of sentences,
    where the record has such."""

    edits: tuple[EditRequest, ...]
    questions: tuple[str, ...]
    clozes: tuple[str, ...]
    old_answers: tuple[str, ...]
    new_answers: tuple[str, ...]
    hops: tuple[Hop, ...]
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        return self.edits


def read_mquake(source: str | Path | None = None, limit: int | None = None,
                relation: str | None = None, skipped: list[dict] | None = None) -> list[ChainCase]:
    """The first `limit` cases of a file or hub data set in MQuAKE's format; without one, our own
    chains in data/chains.json. Bad records as in `read_counterfact`."""
    return read_cases(data_path("chains.json") if source is None else source, _case, limit,
                      relation, skipped)


def _case(index: int, record) -> ChainCase:
    edits = tuple(EditRequest(one["prompt"], one["subject"], one["target_new"]["str"],
                              text(one["target_true"]["str"], "target_true"))
                  for one in record["requested_rewrite"])
    hops = tuple(Hop(text(hop["question"], "question"), text(hop["cloze"], "cloze"),
                     _answers(hop, "answer")) for hop in record["new_single_hops"])
    return ChainCase(
        case_id=int(record.get("case_id", index)), request=edits[0], edits=edits,
        questions=texts(record, "questions"), clozes=texts(record, "clozes", ()),
        old_answers=_answers(record, "answer"), new_answers=_answers(record, "new_answer"),
        hops=hops, relation=record["requested_rewrite"][0].get("relation_id"))


def _answers(record, name: str) -> tuple[str, ...]:
    return text(record[name], name), *texts(record, f"{name}_alias", ())
