"""Records that a model is calibrated on: counterfactual edits of facts that it knows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest

import numpy as np

from ..facts import EditRequest
from ..models.probabilities import token_scores
from ..storage.fact_set import Relation
from ..storage.places import read_lines

_PHRASINGS = 2  # that must have the true answer as the first choice
_NEIGHBORS = 4
_ASKED = 32  # facts asked at once


@dataclass(frozen=True)
class Record:
    """relation: of the fact; request: another object in place of the true one; paraphrases: other
    ways to ask, one after a sentence on something else; neighbors: (prompt, true answer) of other
    subjects of the relation, those of the same object first."""

    relation: str
    request: EditRequest
    paraphrases: tuple[str, ...]
    neighbors: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, value: dict) -> "Record":
        return cls(value["relation"], EditRequest(**value["request"]),
                   tuple(value["paraphrases"]), tuple(map(tuple, value["neighbors"])))

    def to_json(self) -> dict:
        return asdict(self)


def split(relations: Sequence[Relation], seed: int) -> tuple[list[Relation], list[Relation]]:
    """Two halves of the relations, to choose by and to report on; the second without the facts of
    subjects that the first has."""
    order = np.random.RandomState(seed).permutation(len(relations))
    first = [relations[i] for i in order[::2]]
    seen = {subject for relation in first for subject, _ in relation.facts}
    second = [Relation(**{**vars(relations[i]), "facts": tuple(
        fact for fact in relations[i].facts if fact[0] not in seen)}) for i in order[1::2]]
    return first, [relation for relation in second if len(relation.objects) > 1]


def known_records(model, tokenizer, relations: Sequence[Relation], count: int, seed: int,
                  asked: Callable[[int, int], None] = lambda facts, found: None) -> list[Record]:
    """The first `count` records of facts that the model knows, the relations taken in turn: the
    true answer is its first choice in two phrasings or more. Fewer where it knows fewer. Every
    other one is rewritten to an object of any relation: what does not fit is harder to write.

    asked: called with how many facts were asked, and how many are known.
    """
    random, records, done = np.random.RandomState(seed), [], 0
    facts, strange = _in_turn(relations, random), {o for one in relations for o in one.objects}
    while len(records) < count and (some := list(islice(facts, _ASKED))):
        done += len(some)
        pairs = [(text.replace("{}", subject), answer) for relation, (subject, answer) in some
                 for text in relation.texts]
        scores = iter(token_scores(model, tokenizer, pairs))
        for relation, fact in some:
            known = [text for text, tokens in zip(relation.texts, scores, strict=False)
                     if all(first for _, first in tokens)]
            if len(known) >= _PHRASINGS:
                targets = strange if len(records) % 2 else relation.objects
                records.append(_record(relation, fact, known[0], sorted(targets), random))
        asked(done, len(records))
    return records[:count]


def _in_turn(relations, random) -> Iterator[tuple[Relation, tuple[str, str]]]:
    """One fact of each relation, then the next of each, in a random order."""
    columns = [[(relation, relation.facts[i]) for i in random.permutation(len(relation.facts))]
               for relation in relations]
    return (fact for row in zip_longest(*columns) for fact in row if fact is not None)


def _record(relation: Relation, fact: tuple[str, str], prompt: str, targets: Sequence[str],
            random) -> Record:
    subject, answer = fact
    target = str(random.choice([one for one in targets if one not in (answer, subject)]))
    others = [text.replace("{}", subject) for text in relation.texts if text != prompt]
    others[-1] = f"{_sentence(random)} {others[-1]}"
    same = [f for f in relation.facts if f[1] == answer and f[0] != subject]
    rest = [f for f in relation.facts if f[1] not in (answer, target)]
    beside = [*_some(same, random), *_some(rest, random)][:_NEIGHBORS]
    neighbors = tuple((str(random.choice(relation.texts)).replace("{}", s), o) for s, o in beside)
    return Record(relation.name, EditRequest(prompt, subject, target, answer), tuple(others),
                  neighbors)


def _some(facts: list, random) -> list:
    return [facts[i] for i in random.permutation(len(facts))[:_NEIGHBORS]]


def _sentence(random) -> str:
    """One of the neutral text's."""
    paragraph = random.choice(read_lines("neutral.txt"))
    return random.choice([s for s in paragraph.split(". ") if s]).rstrip(".") + "."
