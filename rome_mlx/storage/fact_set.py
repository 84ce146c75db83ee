"""Our own set of public facts: (entity, relation, entity), with ways to say them."""

from dataclasses import dataclass
from functools import cached_property

from .files import read_json
from .places import data_path


@dataclass(frozen=True)
class Relation:
    """name; subject, object: the kinds of entity it joins; texts: ways to say it, each with one
    `{}` for the subject and the object as its next words; question: one that asks for the object;
    facts: ((subject, object), ...), one object for each subject; phrase: the object in words, with
    `{}` for the subject, to ask for something of it; None where nothing is."""

    name: str
    subject: str
    object: str
    texts: tuple[str, ...]
    question: str
    facts: tuple[tuple[str, str], ...]
    phrase: str | None = None

    @cached_property
    def objects(self) -> list[str]:
        """Each once, in the order of the facts."""
        return list(dict.fromkeys(answer for _, answer in self.facts))


def read_fact_set() -> list[Relation]:
    """The relations of data/facts.json, in its order."""
    found = read_json(data_path("facts.json"))
    return [Relation(name, about["subject"], about["object"], tuple(about["texts"]),
                     about["question"], tuple((s, o) for s, o in found["facts"][name]),
                     about.get("phrase"))
            for name, about in found["relations"].items()]
