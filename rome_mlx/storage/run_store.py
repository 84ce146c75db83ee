"""The one place where a run keeps what it has done, and goes on from when it was stopped."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from ..errors import RomeError
from .files import check_writable, write_json
from .ranks import gathered


@dataclass(frozen=True)
class Item:
    """One piece of a run. name: of its file, such as "case_12"; about: what the file must say of
    itself to be this piece's, a dict that JSON can hold."""

    name: str
    about: dict


class Run:
    """A directory with `run.json`, what a run was asked for, and one JSON file per item.

        run = Run("runs/rome", {"method": "rome"}, Identity.of(model))
        results = run.map([Item(f"case_{i}", {"id": i}) for i in ids], compute)

    Files are written whole. Ranks of `mlx.launch` share the items out; all get all results.
    """

    def __init__(self, path: str | Path | None, settings: dict, identity=None):
        """Make the directory, or check that what is there is the same run.

        Args:
            path: the directory; None keeps nothing.
            settings: what the results depend on beside the model, a dict that JSON can hold.
            identity: the model's Identity, where the results depend on a model.

        Raises RomeError where something else is in the way or the run was another; ranks come one
        after the other, and all refuse when one does.
        """
        self.path, self.group, refusal = path and Path(path), mx.distributed.init(), None
        for rank in range(self.group.size() if path is not None else 0):
            if rank == self.group.rank():
                try:
                    self._begin(json.loads(json.dumps(settings)), identity)
                except RomeError as error:
                    refusal = error
            refused = mx.distributed.all_sum(mx.array(int(refusal is not None)), stream=mx.cpu)
            if int(refused):
                raise refusal or RomeError(f"rank {self.group.rank()} cannot use its {str(path)!r}")

    def map(self, items: Sequence[Item], compute: Callable[[list[int], list[int]], dict], *,
            together: int = 1, check: Callable[[dict], object] = lambda result: None,
            progress: bool = False, unit: str = "item") -> list[dict]:
        """The results of all items, in order, those that have a file read from it.

        Args:
            compute: (indices of items that belong together, those of them that have no file) ->
                {index: result}; a result is a dict that JSON can hold.
            together: how many items following one another are computed in one call.
            check: raises KeyError, TypeError or ValueError for what is no result.
            progress: show a bar on stderr, counted in `unit`.

        Returns:
            One dict per item: its `about` and its result.
        """
        rank, mine = self.group.rank(), {}
        groups = [list(range(i, min(i + together, len(items))))
                  for i in range(0, len(items), together)]
        for number in tqdm(range(rank, len(groups), self.group.size()), file=sys.stderr, unit=unit,
                           disable=not progress or rank > 0):
            found = {i: self._read(items[i], check) for i in groups[number]}
            todo = [i for i, result in found.items() if result is None]
            for i, result in (compute(groups[number], todo) if todo else {}).items():
                found[i] = _plain(items[i].about) | result
                self._write(items[i], found[i])
            mine |= found
        found = gathered(self.group, mine)
        if rank == 0:
            self._tidy(items, found)
        return [found[i] for i in range(len(items))]

    def one(self, item: Item, compute: Callable[[], dict]) -> dict:
        """One item's result, for a cache: a damaged file is replaced, and ranks do not share."""
        found = self.cached(item)
        if found is None:
            found = _plain(item.about) | compute()
            self._write(item, found)
        return found

    def cached(self, item: Item) -> dict | None:
        """As `read`, for a cache: None for a damaged file, which `write` replaces."""
        try:
            return self.read(item)
        except RomeError:
            return None

    def read(self, item: Item) -> dict | None:
        """An item's file, None without one. Raises RomeError for one that is damaged or says
        something else of itself."""
        return self._read(item, lambda result: None)

    def write(self, item: Item, result: dict) -> None:
        """Keep an item's result."""
        self._write(item, _plain(item.about) | result)

    def finish(self, summary: dict) -> None:
        """Write summary.json, by the first rank."""
        if self.path is not None and self.group.rank() == 0:
            write_json(self.path / "summary.json", summary)

    def _begin(self, settings: dict, identity) -> None:
        file = self.path / "run.json"
        if self.path.exists() and not self.path.is_dir():
            raise RomeError(f"{str(self.path)!r} is not a directory; choose another --output")
        if not file.exists():
            if self.path.is_dir() and any(not p.name.startswith(".run.json-")
                                          for p in self.path.iterdir()):
                raise RomeError(f"{str(self.path)!r} holds other files; choose a new --output")
            check_writable(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, settings | ({} if identity is None else
                                         {"identity": identity.to_json()}))
            return
        found = _load(file, "choose a new --output")
        other = [name for name in settings if name not in found or found[name] != settings[name]]
        if identity is not None and (differs := _model_difference(file, found, identity)):
            raise RomeError(f"{str(self.path)!r} holds a run of another model: this one has "
                            f"{differs}; choose a new --output, or the same model to go on with it")
        if other:
            raise RomeError(f"{str(self.path)!r} holds a run with other settings "
                            f"({', '.join(_told(name, found, settings) for name in other)}); "
                            "choose a new --output, or the same settings to go on with it")

    def _read(self, item: Item, check) -> dict | None:
        if self.path is None or not (path := self._file(item)).exists():
            return None
        result = _load(path, "remove it and run again")
        for name, wanted in _plain(item.about).items():
            if result.get(name) != wanted:
                raise RomeError(f"{path} is of another {name}, {_short(result.get(name))}, not "
                                f"{_short(wanted)}; choose a new --output, or ask for the same")
        try:
            check(result)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RomeError(f"{path} is damaged ({type(error).__name__}: {error}); remove it and "
                            "run again") from error
        return result

    def _write(self, item: Item, result: dict) -> None:
        if self.path is not None:
            write_json(self._file(item), result)

    def _tidy(self, items, found) -> None:
        """Write what other machines computed; remove what killed processes left half-written."""
        if self.path is None:
            return
        for i, item in enumerate(items):
            if not self._file(item).exists():
                self._write(item, found[i])
        for left in self.path.glob(".*.json-*"):
            left.unlink(missing_ok=True)

    def _file(self, item: Item) -> Path:
        return self.path / f"{item.name}.json"


def _load(path: Path, remedy: str) -> dict:
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
        return value
    except (ValueError, OSError, RecursionError) as error:
        raise RomeError(f"{path} is damaged ({error}); {remedy}") from error


def _model_difference(file: Path, found: dict, identity) -> str | None:
    """What sets the model apart from the run's, in words."""
    try:
        return identity.difference(type(identity).from_json(found["identity"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RomeError(f"{file} does not say which model it is of ({type(error).__name__}: "
                        f"{error}); it may be of an earlier version: choose a new "
                        "--output") from error


def _told(name: str, found: dict, wanted: dict) -> str:
    return f"{name} {_short(found.get(name))}, not {_short(wanted[name])}"


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _plain(value: dict) -> dict:
    """As it is read back from a file: tuples are lists."""
    return json.loads(json.dumps(value))
