"""Question answering: zsRE in the format of MEND's files, and QAEdit; and their measures.

All are shares of target tokens that are the model's first choice, under teacher forcing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..facts import EditRequest, Fact
from .cases import BenchmarkCase
from .metrics import target_scores
from .records import read_cases, text

#: what the score S is the harmonic mean of
SCORE = ("rewrite_acc", "paraphrase_acc", "neighborhood_acc")


@dataclass(frozen=True, kw_only=True)
class QuestionCase(BenchmarkCase):
    """One record: a question with its new answer, the question in other words, unrelated questions
    with their answers, (prompt, answer), and a question whose answer follows from the new one, if
    there is one."""

    paraphrases: tuple[str, ...]
    neighbors: tuple[tuple[str, str], ...]
    portability: tuple[str, str] | None = None

    @property
    def question(self) -> str:
        return self.request.text


def read_zsre(source: str | Path, limit: int | None = None, relation: str | None = None,
              skipped: list[dict] | None = None) -> list[QuestionCase]:
    """The first `limit` cases of a file or hub data set.

    What is written is `alt` in records that have a portability question, which asks what follows
    from it, and else the first of `answers`, as the ROME authors do. Bad records as in
    `read_counterfact`.
    """
    return read_cases(source, _zsre_case, limit, relation, skipped)


def read_qaedit(source: str | Path, limit: int | None = None, relation: str | None = None,
                skipped: list[dict] | None = None) -> list[QuestionCase]:
    """The first `limit` cases of QAEdit's format (Yang et al. 2502.11177): natural questions with
    the right answer, which is written, and five unrelated questions each."""
    return read_cases(source, _qaedit_case, limit, relation, skipped)


def _zsre_case(index: int, record) -> QuestionCase:
    fact = Fact.from_text(text(record["src"], "src"), text(record["subject"], "subject"))
    ported = record.get("portability")
    target = record["alt"] if ported else record["answers"][0]
    unrelated = text(record["loc"], "loc") + "?", text(record["loc_ans"], "loc_ans")
    if ported:
        ported = tuple(text(ported[name], name) for name in ("New Question", "New Answer"))
    return QuestionCase(
        case_id=int(record.get("case_id", index)),
        request=EditRequest(fact.prompt, fact.subject, target, record["answers"][0]),
        paraphrases=(text(record["rephrase"], "rephrase"),), neighbors=(unrelated,),
        portability=ported or None)


def _qaedit_case(index: int, record) -> QuestionCase:
    fact = Fact.from_text(text(record["prompt"], "prompt"), text(record["subject"], "subject"))
    unrelated = tuple((text(one["loc"], "loc"), text(one["loc_ans"], "loc_ans"))
                      for one in record["locality"])
    return QuestionCase(
        case_id=index,  # its own ids number each of its sources
        request=EditRequest(fact.prompt, fact.subject, text(record["target"], "target")),
        paraphrases=(text(record["rephrase"], "rephrase"),), neighbors=unrelated)


def case_scores(model, tokenizer, case: QuestionCase) -> dict[str, list[float]]:
    """{group: [share of right tokens]} of one case."""
    target = case.request.target_new
    groups = {"rewrite": [(case.request.text, target)],
              "paraphrase": [(prompt, target) for prompt in case.paraphrases],
              "neighborhood": list(case.neighbors),
              "portability": [case.portability] if case.portability else []}
    pairs = [(case.ask(prompt), answer) for some in groups.values() for prompt, answer in some]
    scores = iter(target_scores(model, tokenizer, pairs))
    return {name: [next(scores).right for _ in some] for name, some in groups.items() if some}


def case_measures(scores: dict, unedited: dict) -> dict[str, float]:
    """Percent: rewrite_acc, paraphrase_acc, neighborhood_acc and portability."""
    names = {"portability": "portability"}
    try:
        return {names.get(group, f"{group}_acc"): 100 * float(np.mean(scores[group]))
                for group in ("rewrite", "paraphrase", "neighborhood", "portability")
                if group in scores}
    except (TypeError, ValueError) as error:
        raise RomeError(f"the scores {scores} are not a question's; remove the file") from error
