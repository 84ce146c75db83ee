"""Edits that follow one another, each computed on the model that carries those before it."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..facts import EditRequest
from ..models.decoder import Decoder
from ..models.identity import Identity, original_weight
from ..models.loading import describe
from ..moments.lookup import find_moments
from ..storage.files import read_json
from ..storage.run_store import Item, Run
from .edit import Edit, provenance
from .efficacy import efficacy
from .layer_choice import layers_to_edit
from .lowrank import LowRank
from .method import Method
from .methods import METHODS, find_method
from .methods.rome import rome
from .requests import check_requests
from .totals import Batches, Event, Solved, Summed, distinct


def in_sequence(model, tokenizer, requests: Iterable[EditRequest],
                editor: Callable[..., Edit] = rome, layer=None, *, batch: int = 1,
                directory: str | Path | None = None, **options) -> Iterator[Edit]:
    """Yield one edit after another, applied to the model; at the end all are taken back.

        for edit in rm.in_sequence(model, tokenizer, requests, rm.memit, batch=100):
            ...                             # the model carries this edit and those before it

    The arguments of `EditSequence` and of its `write`. The model is restored also when the loop is
    left. With a directory, batches that were finished before are not yielded again.
    """
    requests = _checked(_method_of(editor), requests, batch)  # before any work
    with EditSequence(model, tokenizer, editor, layer, directory=directory, **options) as sequence:
        yield from sequence.write(requests, batch)


class EditSequence:
    """A model that is edited again and again, and carries all of it as one change.

        with rm.EditSequence(model, tokenizer, rm.memit, directory="runs/facts") as sequence:
            for edit in sequence.write(requests, batch=100):
                print(edit.numbers)          # what the model says of the batch just written
            sequence.withdraw(requests[3])
            sequence.edit().save("edits/facts")

    MEMIT and AlphaEdit protect the keys of earlier batches, write a fact anew where the same prompt
    and subject come again, and can take any fact back (`least_squares`); of other methods the
    changes add up. Time and memory of a batch do not grow with the number before it. After the
    `with` the model is as it was. results: a dict for every batch written.
    """

    def __init__(self, model, tokenizer, editor: Callable[..., Edit] = rome, layer=None, *,
                 directory: str | Path | None = None, moments=None, hyperparameters=None,
                 context_templates=None, seed: int = 0, earlier: Iterable[Edit] = (), **options):
        """Settle what all batches share: layers, hyperparameters, context templates, moments.

        Args:
            editor: one of a method's, such as `rm.memit`; layer: its layer, or layers, by default
                by the one rule (`layers_to_edit`).
            directory: keeps every finished batch; a sequence with the same settings goes on there,
                also after a kill.
            moments, context_templates, seed, earlier, options: the editor's.
            hyperparameters: the editor's; None for the model's own, of memit those for many edits.

        Raises RomeError where the directory holds another sequence, naming what differs.
        """
        self.model, self.tokenizer = model, tokenizer
        self.method = _method_of(editor)
        decoder, method = Decoder(model), self.method
        self.hp = method.resolve_in_a_row(hyperparameters, decoder)
        self.layer = layer if layer is not None else layers_to_edit(
            decoder, method, hyperparameters=hyperparameters)
        layers = [self.layer] if isinstance(self.layer, int) else list(self.layer or ())
        self.moments = (find_moments(model, tokenizer, layers, moments) if method.needs_moments
                        else None)
        self.templates = context_templates or method.kept_templates(model, tokenizer, seed, self.hp)
        self.seed, self._options = seed, options
        self._carried: Edit | None = None
        self._digests: frozenset[str] = frozenset()
        self._run = self._begun(directory)
        batches = Batches(self._run.path)
        self._total: Solved | Summed = (
            Solved(batches, method, decoder, layers, self.moments, self.hp, tuple(earlier))
            if method.protects else Summed(batches, method.memory and method.memory()))
        self._events: list[Event] = []
        self._whole = True
        self.results: list[dict] = []
        self._restore()

    @classmethod
    def reopened(cls, model, tokenizer, directory: str | Path, *, moments=None) -> "EditSequence":
        """The sequence that a directory keeps, with its settings. Raises RomeError where there is
        none, and as the constructor."""
        about = read_json(Path(directory) / "run.json")
        try:
            method = find_method(about["method"])
            return cls(model, tokenizer, method.write, about["layers"], directory=directory,
                       moments=moments, seed=about["seed"],
                       hyperparameters=method.resolve(about["hyperparameters"]),
                       context_templates=about["context_templates"])
        except (KeyError, TypeError) as error:
            raise RomeError(f"{str(directory)!r} keeps no sequence of edits ({error}); give a "
                            "directory that EditSequence wrote") from error

    def __enter__(self) -> "EditSequence":
        return self

    def __exit__(self, *error) -> None:
        self._carry({})

    def write(self, requests: Iterable[EditRequest], batch: int = 1) -> Iterator[Edit]:
        """Write requests, so many a call, and yield each batch's edit, which the model then carries
        with all before it; `numbers` say of how many of the batch's targets the model says every
        token ("said") and finds them likelier than the old answers ("likelier"), in percent.

        Requests that the directory holds come first, as they were given; they are not written
        again, and not yielded. Raises RomeError for others, and for conflicting requests in a
        batch; a later one takes the place of an earlier one for the same prompt and subject.
        """
        self._check_whole()
        requests = _checked(self.method, requests, batch)
        held = self._claimed(requests)
        self._carry(self._total.deltas())
        for i in range(held, len(requests), batch):
            yield self._written(requests[i: i + batch])

    @property
    def requests(self) -> list[EditRequest]:
        """What is written and not withdrawn, in the order of the batches."""
        return self._total.requests

    def withdraw(self, request: EditRequest) -> None:
        """Take one fact back: the equations are solved without its key and target. That is exact
        for these equations; what was written after it had found its values with it in place."""
        self._check_whole()
        self._total.withdraw(request)
        self._carry(self._total.deltas())
        self._done(Event(withdrawn=request), {})

    def edit(self) -> Edit:
        """Everything as one Edit of the model that the sequence began with, of a rank that is
        bounded by the weights' sizes, to save, apply or stack as any other."""
        self._check_whole()
        deltas = self._total.deltas()
        if not deltas:
            raise RomeError("nothing has been written yet, or all of it was withdrawn")
        carried, _ = self._carried, self._carry({})
        about = provenance(self.model, self.tokenizer, deltas)
        if carried is not None:
            self._carry(deltas)
        return Edit(method=self.method.name, requests=self._total.requests, deltas=deltas,
                    layers=self._layers(deltas), hyperparameters=self.hp,
                    context_templates=self.templates, seed=self.seed,
                    details=self._total.details, moments=self.moments and self.moments.used,
                    **self._total.written(), **about)

    def disturbance(self) -> dict[str, dict[str, float]]:
        """How far all of it moves what the weights give for text: {module path: {"energy":
        E‖ΔWk‖² = tr(ΔCΔᵀ), "share": of the weight's own E‖Wk‖²}}, over the keys of C. The sum of
        the energies is what perplexity follows (docs/sequences.md). Empty for methods without C."""
        found: dict[str, dict[str, float]] = {}
        decoder, deltas = Decoder(self.model), self._total.deltas() if self.moments else {}
        for layer in self._layers(deltas):
            path, matrix = decoder.path(layer, "down"), self.moments.matrix(layer)
            own = np.array(original_weight(decoder.module(layer, "down")), np.float64).T
            energy = _energy(deltas[path].change, matrix)
            found[path] = {"energy": energy, "share": energy / _energy(own, matrix)}
        return found

    def _written(self, group: list[EditRequest]) -> Edit:
        began, self._whole = time.monotonic(), False
        requests = distinct(group)
        if self._total.leave(requests):
            self._carry(self._total.deltas())
        edit = self.method.write(
            self.model, self.tokenizer, requests if len(requests) > 1 else requests[0], self.layer,
            moments=self.moments, hyperparameters=self.hp, seed=self.seed,
            context_templates=self.templates, **self._options, **self._total.options)
        self._total.add(len(self._events), requests, edit)
        self._digests |= {edit.digest}
        self._carry(self._total.deltas())
        edit.numbers = efficacy(self.model, self.tokenizer, requests)
        self._done(Event(tuple(group)), {**edit.numbers, "seconds": time.monotonic() - began})
        self._whole = True
        return edit

    def _check_whole(self) -> None:
        if not self._whole:
            raise RomeError("the sequence was interrupted within a batch; make it anew, with its "
                            "directory to go on from the batch before")

    def _done(self, event: Event, result: dict) -> None:
        item = _item(len(self._events))
        self._events.append(event)
        self.results.append(event.to_json() | result)
        if self._run.path is not None:
            self._run.write(item, self.results[-1])

    def _carry(self, deltas: dict[str, LowRank]) -> None:
        """Put the sum on the model, in place of the one before."""
        if self._carried is not None and self._carried.is_applied(self.model):
            self._carried.revert(self.model)
        self._carried = None
        if deltas:
            self._carried = Edit(self.method.name, self._total.requests, deltas,
                                 self._layers(deltas), carries=self._digests)
            self._carried.apply(self.model, force=True)

    def _layers(self, deltas: dict[str, LowRank]) -> list[int]:
        decoder = Decoder(self.model)
        return [i for i in decoder.dense_layers if decoder.path(i, "down") in deltas]

    def _begun(self, directory) -> Run:
        if directory is None:
            return Run(None, {})
        run = Run(directory, {
            "method": self.method.name, "layers": self.layer, "seed": self.seed,
            "hyperparameters": asdict(self.hp), "context_templates": self.templates,
            "moments": self.moments and self.moments.used,
            "model": describe(self.model, self.tokenizer)}, Identity.of(self.model))
        if run.group.size() > 1:
            raise RomeError("a sequence that is kept runs in one process; start it without "
                            "mlx.launch")
        return run

    def _restore(self) -> None:
        """Read the batches that are there."""
        while self._run.path and (found := self._run.read(_item(len(self._events)))):
            try:
                self._events.append(Event.from_json(found))
            except (KeyError, TypeError, RomeError) as error:
                raise RomeError(f"batch {len(self._events)} in {str(self._run.path)!r} is damaged "
                                f"({error}); remove it and every batch after it") from error
            self.results.append(found)
        if self._events:
            self._total.restore(self._events)
        self._unclaimed = [one for event in self._events for one in event.requests]

    def _claimed(self, requests: list[EditRequest]) -> int:
        """How many of the requests the directory holds; the next call is not asked for them."""
        held = self._unclaimed[:len(requests)]
        for number, (there, given) in enumerate(zip(held, requests, strict=False)):
            if there != given:
                raise RomeError(f"{str(self._run.path)!r} holds another sequence: its request "
                                f"{number} is {there.text!r} → {there.target_new!r}, not "
                                f"{given.text!r} → {given.target_new!r}; give the same requests, "
                                "or a new directory")
        self._unclaimed = self._unclaimed[len(held):]
        return len(held)


def _checked(method: Method, requests: EditRequest | Iterable[EditRequest],
             batch: int) -> list[EditRequest]:
    """The requests, none of a batch against another. Raises RomeError otherwise."""
    requests = [requests] if isinstance(requests, EditRequest) else list(requests)
    if batch < 1:
        raise RomeError(f"batch is {batch}; give the number of requests a call, 1 or more")
    if batch > 1 and method.one_by_one:
        raise RomeError(f"{method.name} writes one request a call, not {batch}; give batch=1, or "
                        "memit, emmet or alphaedit")
    for i in range(0, max(1, len(requests)), batch):
        check_requests(requests[i: i + batch])
    return requests


def _energy(change: np.ndarray, matrix: np.ndarray) -> float:
    """E‖changeᵀ k‖² of keys with the second moment `matrix`; change: (d_in, d_out)."""
    return float(np.sum(change * (matrix @ change)))


def _item(number: int) -> Item:
    return Item(f"batch_{number:05d}", {})


def _method_of(editor: Callable[..., Edit]) -> Method:
    for method in METHODS.values():
        if method.write is editor:
            return method
    raise RomeError(f"{getattr(editor, '__name__', editor)!r} is no editor; give one of "
                    f"{', '.join(f'rm.{one.write.__name__}' for one in METHODS.values())}")
