"""Further measures of a run's edits, each in a directory of its own within the run's.

A measure reads the edits that the run keeps, so that a finished run can be measured on. One file
for each edit holds what the model said, unedited and edited, of all cases that the edit wrote; the
measures are made from these files anew, as the benchmark's own are.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import RomeError
from ..models.identity import Identity
from ..storage.files import read_json
from ..storage.run_store import Item, Run
from .probes import PROBES, find_probe


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

    def measured(group, some) -> dict:
        before = {i: unedited.get(name, asdict(cases[i]), cases[i].request.text,
                                  lambda i=i: probe.read(model, tokenizer, cases[i]))
                  for i in some}
        if editing.method == "none":
            now = before
        else:
            with editing.edited([cases[i] for i in group], kept=True):
                now = {i: probe.read(model, tokenizer, editing.asked(cases[i])) for i in some}
        return {"cases": [{"case_id": cases[i].case_id, "pre": before[i], "post": now[i]}
                          for i in some]}

    run = Run(path / name, {"measure": name}, Identity.of(model))
    run.map([Item(f"edit_{cases[group[0]].case_id}",
                  {"group": [cases[i].case_id for i in group]}) for group, _ in asked],
            lambda _, todo: {i: measured(*asked[i]) for i in todo}, progress=progress,
            unit=name, check=lambda found: [_values(name, one, "post") for one in found["cases"]])


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
