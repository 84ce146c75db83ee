"""zsRE, question answering, in the format of MEND's files, and its measures.

All are shares of target tokens that are the model's first choice, under teacher forcing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..facts import EditRequest, Fact
from .metrics import target_scores
from .records import read_cases, text

#: what the score S is the harmonic mean of
SCORE = ("rewrite_acc", "paraphrase_acc", "neighborhood_acc")


@dataclass(frozen=True)
class ZsreCase:
    """One record: a question with its new answer, the question in other words, an unrelated
    question with its answer, and a question whose answer follows from the new one, if there is
    one: (prompt, answer)."""

    case_id: int
    request: EditRequest
    rephrased: str
    unrelated: tuple[str, str]
    portability: tuple[str, str] | None = None
    relation: str | None = None
    generation: tuple[str, ...] = ()


def read_zsre(source: str | Path, limit: int | None = None, relation: str | None = None,
              skipped: list[dict] | None = None) -> list[ZsreCase]:
    """The first `limit` cases of a file or hub data set.

    What is written is `alt` in records that have a portability question, which asks what follows
    from it, and else the first of `answers`, as the ROME authors do. Bad records as in
    `read_counterfact`.
    """
    return read_cases(source, _case, limit, relation, skipped)


def _case(index: int, record) -> ZsreCase:
    fact = Fact.from_text(text(record["src"], "src"), text(record["subject"], "subject"))
    ported = record.get("portability")
    target = record["alt"] if ported else record["answers"][0]
    unrelated = text(record["loc"], "loc"), text(record["loc_ans"], "loc_ans")
    if ported:
        ported = tuple(text(ported[name], name) for name in ("New Question", "New Answer"))
    return ZsreCase(
        int(record.get("case_id", index)),
        EditRequest(fact.prompt, fact.subject, target, record["answers"][0]),
        text(record["rephrase"], "rephrase"), (unrelated[0] + "?", unrelated[1]), ported or None)


def case_scores(model, tokenizer, case: ZsreCase) -> dict[str, list[float]]:
    """{group: [share of right tokens]} of one case."""
    pairs = {"rewrite": (case.request.text, case.request.target_new),
             "paraphrase": (case.rephrased, case.request.target_new),
             "neighborhood": case.unrelated, "portability": case.portability}
    pairs = {name: pair for name, pair in pairs.items() if pair is not None}
    scores = target_scores(model, tokenizer, list(pairs.values()))
    return {name: [score.right] for name, score in zip(pairs, scores, strict=True)}


def case_measures(scores: dict, unedited: dict) -> dict[str, float]:
    """Percent: rewrite_acc, paraphrase_acc, neighborhood_acc and portability."""
    names = {"portability": "portability"}
    try:
        return {names.get(group, f"{group}_acc"): 100 * float(np.mean(scores[group]))
                for group in ("rewrite", "paraphrase", "neighborhood", "portability")
                if group in scores}
    except (TypeError, ValueError) as error:
        raise RomeError(f"the scores {scores} are not zsRE's; remove the file") from error
