"""Further measures of the same edits, by name (`--measures`)."""

from collections.abc import Callable
from typing import NamedTuple

from ...errors import RomeError
from ...storage.wordings import unrelated_texts, wordings
from ..cases import BenchmarkCase
from ..mquake import ChainCase
from . import ability, hops, locality, wild


class Probe(NamedTuple):
    """What is asked beside a benchmark's own prompts.

    needs: what a case must have, in words; applies: whether a case has it; read: (model,
    tokenizer, case) -> what the model says, a dict that JSON can hold; measures: (now, before) ->
    {measure: value}, before None for the unedited model; together: once for the cases that are
    edited together; texts: what a case takes, in texts of 64 tokens that are read, for a plan (of
    the first 20 of CounterFact, and of our own chains); prompts: (tokenizer, case) -> prompts
    whose continuations `read` takes as a fourth argument, so that those of many edits are written
    side by side.
    """

    needs: str
    applies: Callable[[BenchmarkCase], bool]
    read: Callable[..., dict]
    measures: Callable[[dict, dict | None], dict[str, float]]
    texts: float
    together: bool = False
    prompts: Callable[..., list[str]] | None = None


def _worded(case) -> bool:
    return case.relation in wordings() and case.request.target_true is not None


_RELATION = "a relation of CounterFact, such as P36, and a true answer"
PROBES = {
    "wild": Probe("a prompt", lambda case: True, wild.read, wild.measures, 5.4,
                  prompts=wild.prompts),
    "distractor": Probe("neighbors", lambda case: bool(case.neighbors), locality.read_distractor,
                        locality.measures_distractor, 3.8),
    "relations": Probe(
        "a relation of CounterFact whose subjects have others",
        lambda case: case.relation in wordings() and bool(unrelated_texts(case.relation)),
        locality.read_relations, locality.measures_relations, 0.9),
    "negation": Probe(_RELATION, _worded, locality.read_negation, locality.measures_negation,
                      0.2),
    "reversal": Probe(_RELATION, _worded, locality.read_reversal, locality.measures_reversal,
                      0.4),
    "hops": Probe("a chain, as MQuAKE's", lambda case: isinstance(case, ChainCase), hops.read,
                  hops.measures, 11.2, prompts=hops.prompts),
    "ability": Probe("nothing", lambda case: True, ability.read, ability.measures, 66,
                     together=True),
}


def find_probe(name: str) -> Probe:
    """Raises RomeError for a name that is not there."""
    if name not in PROBES:
        raise RomeError(f"the measure {name!r} is unknown; choose from {', '.join(PROBES)}")
    return PROBES[name]
