"""Records of a benchmark, from a file or a hub data set, checked one by one."""

from collections.abc import Callable
from pathlib import Path

from ..errors import RomeError
from ..storage.files import read_json


def read_cases(source: str | Path, parse: Callable, limit: int | None = None,
               relation: str | None = None, skipped: list[dict] | None = None) -> list:
    """The first `limit` cases of a source, of one relation if asked.

    source: a JSON or JSONL file, or a hub data set such as azhx/counterfact; parse: (index,
    record) -> case, raises for a bad record. A bad record is refused by name, or, where a list
    `skipped` is given, left out and put there as {"record", "reason"}.
    """
    records = _records(source)
    if not isinstance(records, list) or not records:
        raise RomeError(f"{str(source)!r} holds no list of records; give the benchmark's own file")
    cases, seen, skipped_before = [], set(), len(skipped or ())
    for i, record in enumerate(records):
        try:
            case = parse(i, record)
            if case.case_id in seen:
                raise RomeError(f"case_id {case.case_id} is there twice; number them apart")
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            reason = str(error) if isinstance(error, RomeError) else (
                f"{type(error).__name__}: {error}")
            if skipped is None:
                raise RomeError(f"{str(source)!r}, record {i}: not a record of this benchmark "
                                f"({reason}); mend it, or skip bad records") from error
            skipped.append({"record": i, "reason": reason})
            continue
        seen.add(case.case_id)
        if relation is None or case.relation == relation:
            cases.append(case)
    if not cases:
        bad = len(skipped or ()) - skipped_before
        raise RomeError(f"{str(source)!r} has no record of relation {relation!r}" if seen else
                        f"all {bad} records of {str(source)!r} are bad; the first: "
                        f"{skipped[-bad]['reason']}")
    return cases[:limit]


def text(value, name: str) -> str:
    """A text that is not empty. Raises RomeError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise RomeError(f"{name} is {value!r}; give a text")
    return value


def texts(record, name: str, *default) -> tuple[str, ...]:
    """A list of texts of a record, or the default where it has none. Raises RomeError for
    anything else."""
    found = (record.get(name) or default[0]) if default else record[name]
    if not isinstance(found, list | tuple):
        raise RomeError(f"{name} is {found!r}; give a list of texts")
    return tuple(text(one, f"a text of {name}") for one in found)


def _records(source):
    name, path = str(source), Path(source)
    if path.is_file() or name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix:
        return read_json(path)
    from datasets import load_dataset

    try:
        splits = load_dataset(name)
    except Exception as error:  # the hub's, the network's and the parsers' own
        reason = " ".join(str(error).split())[:200]
        raise RomeError(f"there is no file {name!r}, and the hub did not give a data set of that "
                        f"name ({type(error).__name__}: {reason}); give a JSON file") from error
    return list(splits["train" if "train" in splits else next(iter(splits))])
