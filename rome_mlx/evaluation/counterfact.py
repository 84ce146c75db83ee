"""CounterFact records: the authors' format, which is MultiCounterFact's too, and EasyEdit's."""

from dataclasses import dataclass
from pathlib import Path

from ..facts import EditRequest, Fact
from ..storage.places import data_path
from ..storage.wordings import wordings
from .cases import BenchmarkCase
from .records import read_cases, text, texts


@dataclass(frozen=True, kw_only=True)
class Case(BenchmarkCase):
    """One record: what to write, other ways to ask it, and other subjects of the same relation.

    neighbor_answer: what the neighbors' prompts should go on with, in the authors' records the
    request's target_true; target_id: Wikidata's, where the record has it.
    """

    paraphrases: tuple[str, ...]
    neighbors: tuple[str, ...]
    neighbor_answer: str
    target_id: str | None = None

    @property
    def question(self) -> str | None:
        wording = wordings().get(self.relation)
        return wording and wording.question.replace("{}", self.request.subject)


def read_counterfact(source: str | Path | None = None, limit: int | None = None,
                     relation: str | None = None, skipped: list[dict] | None = None) -> list[Case]:
    """The first `limit` cases of a file or hub data set, of one relation if asked.

    Without a source, our own records in data/counterfact.json. Raises RomeError that names the
    record for anything that is not one, unless a list `skipped` is given, which then takes them.
    """
    return read_cases(data_path("counterfact.json") if source is None else source, _case, limit,
                      relation, skipped)


def _case(index: int, record) -> Case:
    if "requested_rewrite" not in record:
        return _easyedit_case(index, record)
    rewrite = record["requested_rewrite"]
    request = EditRequest(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"],
                          text(rewrite["target_true"]["str"], "target_true"))
    return Case(
        case_id=int(record["case_id"]), request=request, neighbor_answer=request.target_true,
        paraphrases=texts(record, "paraphrase_prompts"),
        neighbors=texts(record, "neighborhood_prompts"), relation=rewrite.get("relation_id"),
        target_id=rewrite["target_new"].get("id"),
        generation=texts(record, "generation_prompts", ()))


def _easyedit_case(index: int, record) -> Case:
    """A flat record with a literal prompt, one paraphrase and one neighbor."""
    fact = Fact.from_text(text(record["prompt"], "prompt"), text(record["subject"], "subject"))
    request = EditRequest(fact.prompt, fact.subject, record["target_new"],
                          text(_first(record["ground_truth"]), "ground_truth"))
    paraphrases, neighbors = ((text(record[name], name),) if record.get(name) else ()
                              for name in ("rephrase_prompt", "locality_prompt"))
    answer = _first(record.get("locality_ground_truth")) if neighbors else request.target_true
    return Case(case_id=int(record.get("case_id", index)), request=request,
                paraphrases=paraphrases, neighbors=neighbors,
                neighbor_answer=text(answer, "locality_ground_truth"))


def _first(value):
    return value[0] if isinstance(value, list) else value
