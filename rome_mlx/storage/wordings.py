"""How the relations of CounterFact are asked, denied and turned round: data/relations.json."""

from dataclasses import dataclass
from functools import cache

from .files import read_json
from .places import data_path


@dataclass(frozen=True)
class Wording:
    """Of a Wikidata relation, each text but `reverse` with one `{}` for the subject.

    text: ends before the object; question: asks for it; denied: says that the next words are not
    the object; reverse: with `{}` for the object, ends before the subject; subject: its kind;
    family: relations of one family follow from one another, as birth place and nationality.
    """

    subject: str
    family: str
    text: str
    question: str
    denied: str
    reverse: str


@cache
def wordings() -> dict[str, Wording]:
    """{Wikidata id, such as P36: Wording}."""
    found = read_json(data_path("relations.json"))["relations"]
    return {relation: Wording(**about) for relation, about in found.items()}


@cache
def unrelated_texts(relation: str) -> tuple[str, ...]:
    """What else can be said of this relation's subjects, of other families than its own."""
    kinds, of = read_json(data_path("relations.json"))["kinds"], wordings()
    own = of[relation]
    return tuple(other.text for other in of.values()
                 if other.subject in kinds[own.subject] and other.family != own.family)
