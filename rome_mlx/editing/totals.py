"""What a sequence of edits holds: one change of each weight, however many edits it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import RomeError
from ..facts import EditRequest
from ..models.decoder import Decoder
from ..models.weights import weight_shape
from ..storage.files import in_one_piece
from .edit import Edit
from .least_squares import LeastSquares
from .lowrank import LowRank, dense
from .method import Method
from .spread import equations_at


@dataclass(frozen=True)
class Event:
    """What a sequence did: wrote a batch of requests, or withdrew one."""

    requests: tuple[EditRequest, ...] = ()
    withdrawn: EditRequest | None = None

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value) -> "Event":
        """Raises KeyError, TypeError or RomeError for what is none."""
        withdrawn = value["withdrawn"]
        return cls(tuple(EditRequest(**one) for one in value["requests"]),
                   withdrawn and EditRequest(**withdrawn))


class Batches:
    """The arrays of every batch, in files of a directory, or in memory without one."""

    def __init__(self, directory: Path | None):
        self.directory = directory
        self._kept: dict[int, dict[str, np.ndarray]] = {}

    def put(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        if self.directory is None:
            self._kept[number] = arrays
            return
        with in_one_piece(self._file(number)) as file:
            save_file(arrays, str(file))

    def get(self, number: int) -> dict[str, np.ndarray]:
        if self.directory is None:
            return self._kept[number]
        try:
            return load_file(str(self._file(number)))
        except (OSError, SafetensorError, ValueError) as error:
            raise RomeError(f"{self._file(number)} is damaged ({error}); remove it and every batch "
                            "after it, and run again") from error

    def drop(self, number: int) -> None:
        self._kept.pop(number, None)
        if self.directory is not None:
            self._file(number).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.directory / f"batch_{number:05d}.safetensors"


class Summed:
    """Changes that add up, of methods whose edits do not know one another. Each batch's file holds
    the sum so far; those before the last two are dropped."""

    def __init__(self, batches: Batches, memory=None):
        self.batches, self.details, self._memory = batches, {}, memory
        self.options = {} if memory is None else {"running": memory}
        self._sum: dict[str, LowRank] = {}
        self._requests: dict[str, EditRequest] = {}

    def leave(self, requests: Sequence[EditRequest]) -> bool:
        """A fact that comes again is written over: nothing has to be taken out."""
        return False

    def add(self, number: int, requests: Sequence[EditRequest], edit: Edit) -> None:
        for path, delta in edit.deltas.items():
            self._sum[path] = self._sum[path] + delta if path in self._sum else delta
        self.batches.put(number, {
            **{f"{path}.{side}": getattr(delta, side)
               for path, delta in self._sum.items() for side in "ab"},
            **({} if self._memory is None else self._memory.arrays())})
        self.batches.drop(number - 2)
        self._requests |= {_name(request): request for request in requests}

    def restore(self, events: Sequence["Event"]) -> None:
        self._requests = {_name(one): one for event in events for one in event.requests}
        stored = self.batches.get(len(events) - 1)
        self._sum = {name[:-2]: LowRank(stored[name], stored[f"{name[:-2]}.b"])
                     for name in stored if name.endswith(".a")}
        if self._memory is not None:
            self._memory.restore(stored)

    def withdraw(self, request: EditRequest) -> None:
        raise RomeError("only memit and alphaedit keep what it takes to withdraw one fact of a "
                        "sequence; write the old answer anew, or leave the sequence")

    @property
    def requests(self) -> list[EditRequest]:
        return list(self._requests.values())

    def deltas(self) -> dict[str, LowRank]:
        return dict(self._sum)

    def written(self) -> dict[str, dict[str, np.ndarray]]:
        """The fields of an Edit that say where it wrote."""
        return {}


class Solved:
    """Keys and their targets, of methods whose batches are one least-squares problem."""

    def __init__(self, batches: Batches, method: Method, decoder: Decoder, layers, moments, hp,
                 earlier: Sequence[Edit] = ()):
        self.batches, self.details = batches, {}
        self._equations: dict[str, LeastSquares] = {}
        self._place: dict[str, tuple[int, int]] = {}  # of each text that is held: batch, column
        self._requests: dict[str, EditRequest] = {}
        self._change: dict[str, LowRank] = {}
        for layer in layers:
            path = decoder.path(layer, "down")
            self._equations[path], said = equations_at(method, hp, decoder, layer,
                                                       moments.matrix(layer), earlier)
            for name, about in said.items():
                self.details.setdefault(name, []).append({"layer": layer, **about})
        self._side = min(side for layer in layers
                         for side in weight_shape(decoder.module(layer, "down")))
        self.options = {"written": self._equations}

    def leave(self, requests: Sequence[EditRequest]) -> bool:
        """Take out what was written for the same prompts and subjects: with both answers in, the
        new one would be reached half-way. Whether there was anything."""
        if left := self._left(requests):
            self._solve()
        return left

    def add(self, number: int, requests: Sequence[EditRequest], edit: Edit) -> None:
        arrays = {}
        for path, keys in edit.keys.items():
            targets = edit.targets[path]
            if path in self._change:
                targets = targets + self._change[path].change.T @ keys
            arrays[f"{path}.keys"] = keys.T.astype(np.float32)
            arrays[f"{path}.targets"] = targets.T.astype(np.float32)
        self.batches.put(number, arrays)
        self._hold(number, requests)
        self._solve()

    def restore(self, events: Sequence[Event]) -> None:
        for number, event in enumerate(events):
            if event.withdrawn is not None:
                self._left([event.withdrawn])
            else:
                requests = distinct(event.requests)
                self._left(requests)
                self._hold(number, requests)
        self._solve()

    def withdraw(self, request: EditRequest) -> None:
        if _name(request) not in self._place:
            raise RomeError(f"the sequence holds nothing for {request.text!r}; name a prompt and "
                            "subject that were written")
        self.leave([request])

    @property
    def requests(self) -> list[EditRequest]:
        return [self._requests[name] for name in sorted(self._place, key=self._place.get)]

    def deltas(self) -> dict[str, LowRank]:
        return dict(self._change)

    def written(self) -> dict[str, dict[str, np.ndarray]]:
        """The fields of an Edit that say where it wrote, in the order of the batches."""
        parts: dict[str, list] = {path: [] for path in self._equations}
        for number in sorted({number for number, _ in self._place.values()}):
            columns = sorted(c for n, c in self._place.values() if n == number)
            for path, pair in self._stored(number, columns).items():
                parts[path].append(pair)
        return {name: {path: np.concatenate([pair[i] for pair in pairs], axis=1)
                       for path, pairs in parts.items()}
                for i, name in enumerate(("keys", "targets"))}

    def _left(self, requests: Sequence[EditRequest]) -> bool:
        """Whether there was anything to take out of the equations."""
        there = {name for name in map(_name, requests) if name in self._place}
        for name in sorted(there):
            number, column = self._place.pop(name)
            for path, (keys, targets) in self._stored(number, [column]).items():
                self._equations[path].remove(keys, targets)
        return bool(there)

    def _hold(self, number: int, requests: Sequence[EditRequest]) -> None:
        for path, (keys, targets) in self._stored(number).items():
            self._equations[path].add(keys, targets)
        self._place |= {_name(request): (number, i) for i, request in enumerate(requests)}
        self._requests |= {_name(request): request for request in requests}

    def _stored(self, number: int, columns: list[int] | None = None):
        """{path: (keys (d_in, n), targets (d_out, n))} of a batch, or of some of its columns."""
        arrays = self.batches.get(number)
        return {path: tuple(array.astype(np.float64).T if columns is None
                            else array.astype(np.float64).T[:, columns]
                            for array in (arrays[f"{path}.keys"], arrays[f"{path}.targets"]))
                for path in self._equations}

    def _solve(self) -> None:
        """Of a rank of one a fact, while that is less than the weight's smaller side: only then
        are the batches read again."""
        if not self._place:
            self._change = {}
        elif len(self._place) < self._side:
            held = self.written()
            self._change = {path: LowRank(equations.factor(held["keys"][path]),
                                          held["targets"][path].T)
                            for path, equations in self._equations.items()}
        else:
            self._change = {path: dense(equations.change())
                            for path, equations in self._equations.items()}


def distinct(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """One request for each fact, of a batch in which none is against another."""
    return list({_name(request): request for request in requests}.values())


def _name(request: EditRequest) -> str:
    """What two requests for one fact share, however spaced."""
    return " ".join(request.text.split())
