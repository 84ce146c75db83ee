"""Calibration: what a model knows, where it keeps it, and how to write it."""

import hashlib
import json
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlx_lm.utils import get_total_parameters

from ..editing.calibrated import keep_calibration, sizes
from ..editing.hyperparameters import depth_layer
from ..editing.methods.rome import ROME
from ..errors import RomeError
from ..models.applied import edits_of
from ..models.decoder import Decoder
from ..models.identity import Identity
from ..models.loading import describe, versions
from ..models.weights import weight_shape
from ..moments import store
from ..moments.lookup import ensure_moments
from ..storage.fact_set import read_fact_set
from ..storage.files import write_json
from ..storage.places import cache_directory
from ..storage.run_store import Item, Run
from ..tracing.attribution import attribution
from ..tracing.decision import first_candidate, scaled_window
from .known import Record, known_records, split
from .many import METHODS, ManyConfiguration, ManyTrials, search_many
from .search import Rounds, candidate_layers, search
from .trials import Bench, Configuration, Trials, measures

_WORDS = ("word",)  # kinds of subject that are no entity: what they have are forms, not facts
_SCREENED = 12  # facts whose estimated traces propose layers
_REPORTED = 30  # records that the result is measured on, which chose nothing
_FEWEST = 6  # known facts in each half
_AN_EDIT = 5000  # operations a parameter, in edit and measurement, as a large product would be fast
_PUBLISHED = 5  # edits' time that one by the published steps takes: 21 contexts for 4, 20 steps
#: methods that one search is of: they differ in how the update's key is read
_ONE = ("rome", "r-rome", "p-rome")
_COUNTED, _MEMORY = 20, 3e9  # bytes that counting takes for each number of C, and at most


@dataclass(frozen=True)
class Calibration:
    """presets: {method: {"layers", "hyperparameters"}}; evidence: a row for every configuration
    tried, on the records that chose; held_out: the chosen one on records of other relations and
    subjects, with 95 % intervals; uncalibrated: {method: why not}; edits_tried and seconds: of
    all of it."""

    model: dict
    identity: dict
    presets: dict[str, dict]
    evidence: list[dict]
    held_out: dict
    uncalibrated: dict[str, str]
    edits_tried: int
    seconds: float
    about: dict

    def to_json(self) -> dict:
        """As `rome-mlx calibrate --json` writes it, and as --hyperparameters reads it."""
        return dict(vars(self))

    def save(self, path: str | Path) -> Path:
        """Write a file to hand on: `hyperparameters="path.json"` of every editor."""
        write_json(path, self.to_json())
        return Path(path)


def calibrate(model, tokenizer, *, time: float = 1200, layers: Sequence[int] | None = None,
              methods: Sequence[str] = METHODS, moments=None, corpus=None, seed: int = 0,
              progress: Callable[[str, dict], None] | None = None) -> Calibration:
    """Find layer and hyperparameters of ROME for a model by editing facts that it knows.

    What is found is kept in the cache, and every command and editor uses it for this model from
    then on. The facts are our own (data/facts.json): half of the relations choose, the others
    report. A call that was stopped goes on where it was. The model is left as it was.

    Args:
        time: seconds that the search for ROME may take, moments and reading not counted; with
            less time fewer records are edited, never fewer than 6 for what is chosen.
        layers: to try beside the one at 15 % of the depth, by default 8 over the lower three
            fifths.
        methods: of many facts, to calibrate too, at the layer found.
        moments: as for `rome`; missing ones are counted first, over `corpus` or the model's own
            samples.
        progress: called with the name of each stage and what it found.

    Raises RomeError for an edited model, and for one that knows too few of the facts.
    """
    if edits_of(model):
        raise RomeError("the model carries edits; calibrate it without them")
    started, tell = clock.monotonic(), progress or (lambda stage, found: None)
    decoder, identity = Decoder(model), Identity.of(model)
    start, published = starting_points(decoder)
    about = {"seed": seed, "versions": versions()}
    asked = _run(identity, "facts", about)
    records, reported = _records(asked, model, tokenizer, seed, tell)
    usable = _usable(decoder, moments)
    layers = sorted({start.layer, *(decoder.check_layer(i) for i in layers or candidate_layers(
        len(decoder.layers), usable,
        [start.layer, *_screened(asked, model, tokenizer, records)]))})
    found = ensure_moments(model, tokenizer, _counted(decoder, usable, layers, moments), moments,
                           seed=seed, corpus=corpus)
    about["moments"] = found.used
    run = _run(identity, "edits", about)
    trials = Trials(Bench(run, model, tokenizer, records), found, seed)
    an_edit = _seconds(run, trials, start)
    rounds = Rounds().within(time / an_edit, len(layers))

    def told(configuration: Configuration, results: list[dict]) -> None:
        left = an_edit * (rounds.edits(len(layers)) - trials.edits + _REPORTED)
        tell("tried", {"configuration": configuration, "edits": trials.edits, "left": left,
                       **measures(results, trials.bench.unedited)})

    chosen = search(trials, layers, start, published, rounds, told)
    report = Trials(Bench(run, model, tokenizer, reported), found, seed)
    held_out = measures(report.of(chosen, len(reported)), report.bench.unedited,
                        intervals=True)
    many = ManyTrials(trials.bench, found, seed)
    others, uncalibrated = _others(many, methods, chosen.layer, sorted(found.about), tell)
    calibration = Calibration(
        {**describe(model, tokenizer), **sizes(decoder)}, identity.to_json(),
        {name: _preset(one) for name, one in {**dict.fromkeys(_ONE, chosen), **others}.items()},
        [*trials.evidence(), *many.evidence()], held_out, uncalibrated,
        trials.edits + report.edits, clock.monotonic() - started, about)
    keep_calibration(calibration.to_json())
    tell("chosen", {"calibration": calibration})
    return calibration


def starting_points(decoder: Decoder) -> tuple[Configuration, Configuration]:
    """At the usual depth: what an uncalibrated model gets, and the published hyperparameters."""
    layer = depth_layer(decoder)
    return (Configuration(layer, ROME.uncalibrated(decoder)),
            Configuration(layer, ROME.unplaced(ROME.published)))


def _run(identity: Identity, what: str, about: dict) -> Run:
    """Where the cache keeps what was done before the same way."""
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
    return Run(cache_directory() / "calibrations" / identity.digest / f"{what}-{name}", about,
               identity)


def _usable(decoder: Decoder, moments) -> list[int]:
    """Layers that can be edited, of a directory of moments those that it has."""
    return [i for i in decoder.dense_layers if not isinstance(moments, str | Path)
            or store.layer_path(moments, i).exists()] or decoder.dense_layers


def _counted(decoder: Decoder, usable: Sequence[int], layers: Sequence[int], moments) -> list[int]:
    """Layers to have moments of: those to try and, so that methods of many layers can be tried,
    those between, where they are given or there is memory to count them."""
    between = [i for i in usable if i <= max(layers)]
    width = weight_shape(decoder.module(usable[0], "down"))[1]
    given = isinstance(moments, str | Path)
    if not given and (moments is not None or _COUNTED * len(between) * width**2 > _MEMORY):
        between = []
    return sorted({*layers, *between})


def _others(trials: ManyTrials, methods: Sequence[str], layer: int, available: list[int],
            tell) -> tuple[dict[str, ManyConfiguration], dict[str, str]]:
    """{method: the best configuration}, and {method: why there is none}."""
    found, refused = {}, {}
    for name in methods:
        try:
            found[name] = search_many(trials, name, layer, available, lambda one, results: tell(
                "tried many", {"configuration": one, **measures(results, trials.bench.unedited)}))
        except RomeError as error:
            refused[name] = str(error)
    return found, refused


def _preset(chosen: Configuration | ManyConfiguration) -> dict:
    return {name: value for name, value in chosen.to_json().items() if name != "method"}


def expected_seconds(decoder: Decoder, gflops: float) -> float:
    """About how long a search takes, of a model on a machine of this speed, without moments."""
    edits = Rounds().edits(8) + _REPORTED + (_PUBLISHED - 1) * Rounds.second
    return edits * _AN_EDIT * get_total_parameters(decoder.model) / (1e9 * gflops)


def _records(run: Run, model, tokenizer, seed: int, tell) -> tuple[list[Record], list[Record]]:
    """The records that choose, and those that report."""
    facts = [one for one in read_fact_set() if one.subject not in _WORDS]
    halves, found = split(facts, seed), []
    for name, half, count in zip(("choosing", "reporting"), halves,
                                 (Rounds().third, _REPORTED), strict=True):
        def compute(half=half, count=count, name=name) -> dict:
            return {"records": [record.to_json() for record in known_records(
                model, tokenizer, half, count, seed,
                lambda asked, known: tell("asked", {"asked": asked, "known": known,
                                                    "what": name}))]}

        kept = run.one(Item(f"records_{name}", {"seed": seed}), compute)
        found.append([Record.from_json(record) for record in kept["records"]])
        if len(found[-1]) < _FEWEST:
            raise RomeError(f"this model knows {len(found[-1])} of our facts in half of the "
                            f"relations, and calibration needs {_FEWEST}; give it a layer and "
                            "hyperparameters by hand")
    return found[0], found[1]


def _screened(run: Run, model, tokenizer, records: Sequence[Record]) -> list[int]:
    """The two layers that estimated traces of the facts point at most, on average."""

    def compute() -> dict:
        found = [attribution(model, tokenizer, record.request.fact, kind="mlp",
                             token_range="subject_last") for record in records[:_SCREENED]]
        return {"effects": np.mean([one.deciding_effect for one in found], axis=0).tolist()}

    effects = run.one(Item("screening", {"facts": _SCREENED}), compute)["effects"]
    first = first_candidate("mlp", scaled_window(len(effects)))
    return sorted(range(first, len(effects)), key=lambda layer: -effects[layer])[:2]


def _seconds(run: Run, trials: Trials, first: Configuration) -> float:
    """Of an edit and its measurement, by the first of them, also where those were made before."""

    def compute() -> dict:
        began = clock.monotonic()
        edits = len(trials.of(first, Rounds.first))
        return {"seconds": (clock.monotonic() - began) / edits}

    seconds = run.one(Item("cost", {"layer": first.layer}), compute)["seconds"]
    trials.of(first, Rounds.first)  # counted among what was tried, also when read from the run
    return seconds
