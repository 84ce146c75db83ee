"""Further measures of a run's edits, each in a directory of its own within the run's.

A measure reads the edits that the run keeps, so that a finished run can be measured on. One file
for each edit holds what the model said, unedited and edited, of all cases that the edit wrote; the
measures are made from these files anew, as the benchmark's own are.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from ..errors import RomeError
from ..models.identity import Identity
from ..storage.files import read_json
from ..storage.run_store import Item, Run
from .answers import continued
from .probes import PROBES, find_probe

_TOGETHER = 16  # cases of which a measure is taken before it is kept


def measure_further(name: str, cases: Sequence, groups: Sequence[Sequence[int]], path: Path,
                    editing, unedited, progress: bool = False) -> None:
    """Ask the model for one measure, edit by edit, what has no file in path/name yet.

    groups: indices of the cases that are edited together; editing: of `run`; unedited: Kept of the
    unedited model. Raises RomeError where no case has what the measure needs.
    """
    probe = find_probe(name)
    asked = [_asked(probe, cases, group) for group in groups]
    if not any(asked):
        raise RomeError(f"the measure {name!r} needs {probe.needs}, which no case has")
    asked = [(group, some) for group, some in zip(groups, asked, strict=True) if some]
    model, tokenizer = editing.model, editing.tokenizer

    def measured(todo: list[int]) -> dict[int, dict]:
        whose = [i for edit in todo for i in asked[edit][1]]
        before = unedited.several(
            name, [(asdict(cases[i]), cases[i].request.text) for i in whose],
            lambda missing: read_all(probe, model, tokenizer,
                                     [cases[whose[i]] for i in missing]))
        now = before
        if editing.method != "none":
            edits = []
            for one in todo:
                group, some = asked[one]
                edits += [editing.kept_edit([cases[i] for i in group])] * len(some)
            now = read_all(probe, model, tokenizer, [editing.asked(cases[i]) for i in whose],
                           edits)
        found = {i: {"case_id": cases[i].case_id, "pre": pre, "post": post}
                 for i, pre, post in zip(whose, before, now, strict=True)}
        return {edit: {"cases": [found[i] for i in asked[edit][1]]} for edit in todo}

    run = Run(path / name, {"measure": name}, Identity.of(model))
    run.map([Item(f"edit_{cases[group[0]].case_id}",
                  {"group": [cases[i].case_id for i in group]}) for group, _ in asked],
            lambda _, todo: measured(todo), together=max(1, _TOGETHER // len(groups[0])),
            progress=progress, unit=name,
            check=lambda found: [_values(name, one, "post") for one in found["cases"]])


def read_all(probe, model, tokenizer, cases: Sequence, edits: Sequence | None = None
             ) -> list[dict]:
    """What the model says to each case, with the case's own edit where there are such: texts side
    by side, all else edit by edit."""
    edits = [None] * len(cases) if edits is None else edits
    prompts = [probe.prompts(tokenizer, case) if probe.prompts else [] for case in cases]
    texts = iter(continued(model, tokenizer, [prompt for some in prompts for prompt in some],
                           [edit for some, edit in zip(prompts, edits, strict=True)
                            for _ in some]))
    found = []
    for case, edit, some in zip(cases, edits, prompts, strict=True):
        own = [[next(texts) for _ in some]] if probe.prompts else []
        with edit.applied(model) if edit else nullcontext():
            found.append(probe.read(model, tokenizer, case, *own))
    return found


def with_further(path: str | Path, results: Sequence[dict]) -> list[dict]:
    """A run's cases' files with what its further measures found: "measures": {name: found}.

    Raises RomeError for a file that is damaged.
    """
    found: dict[int, dict] = {result["case_id"]: {} for result in results}
    for name in PROBES:
        for file in (Path(path) / name).glob("edit_*.json"):
            try:
                for one in read_json(file)["cases"]:
                    found.get(one["case_id"], {})[name] = {s: one[s] for s in ("pre", "post")}
            except (KeyError, TypeError) as error:
                raise RomeError(f"{file} is damaged ({type(error).__name__}: {error}); remove it "
                                "and measure again") from error
    return [{**result, "measures": found[result["case_id"]]} for result in results]


def further_measures(result: dict, state: str) -> dict[str, float]:
    """{measure: value} of what `with_further` put to a case; state as for `measures_of`. What
    tells of a change is left out of the unedited model, not where an edit changed nothing."""
    unedited = result[state] == result["pre"]
    return {measure: value for name, found in result.get("measures", {}).items()
            for measure, value in _values(name, found, state, unedited).items()}


def _values(name: str, found: dict, state: str, unedited: bool = False) -> dict[str, float]:
    return PROBES[name].measures(found[state], None if unedited else found["pre"])


def _asked(probe, cases, group: Sequence[int]) -> list[int]:
    """Those of a group that are asked: of a measure of the whole edit the first one only."""
    some = [i for i in group if probe.applies(cases[i])]
    return some[:1] if probe.together else some
