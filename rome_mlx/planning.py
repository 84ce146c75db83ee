"""What a command will take on this machine, known before the weights are read.

Sizes come from the headers of the model's files. Time is the arithmetic that cannot be avoided
(matrix products), by what this machine does of it in a moment's trial, and by the share of that
which each step reaches; memory is the weights and what each step holds beside them. Shares and
factors were measured (benchmarks/scaling.py, docs/size.md).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx
import numpy as np

from .accel.packed import SLICE, unpacking_rate
from .editing.layer_choice import layers_to_edit
from .editing.method import Method
from .editing.methods import METHODS, find_method
from .editing.value import AT_ONCE
from .errors import RomeError
from .evaluation.probes import find_probe
from .models.decoder import Decoder
from .models.loading import load, loads_packed
from .models.weights import (
    floats_of,
    has_codes,
    memory_of_machine,
    stored_bytes,
    weight_shape,
)
from .moments.lookup import find_moments
from .moments.quality import THIN
from .tracing.decision import scaled_window
from .tracing.restore import numbers_a_token

COMMANDS = ("trace", "locate", "moments", "edit", "eval")
_START = 2.6, 0.25e9  # seconds and bytes of the imports and the tokenizer
_READING = 1.25e9  # bytes a second, from a disk's cache, cast included
_DEQUANTIZED = 0.45e9  # bytes of float32 a second, where a quantized model becomes that
_FACTORED = 1e11  # width³ a second: C is read, copied and factored
_READ_PER_CASE = 10  # texts of an evaluated record: before and after its edit, and the neutral
_FACTORS = 2.5  # of width³: products, after counting a C, of the look at what was counted
_CORPUS = 0.15e9  # bytes that a text to count over takes
_CONTEXTS = 6  # of a value, of methods whose hyperparameters do not say
_KEPT = 2  # of a block's activations, what a gradient through it holds
_TRACING = 1e9  # bytes that a trace's activations may take, by its default
#: of the peak of large products, what each step reaches, by measurement
_SHARES = {"trace": 0.69, "moments": 0.65, "templates": 0.26, "value": 0.34, "reading": 0.50}


@dataclass(frozen=True)
class Step:
    """A part of a command: seconds, bytes beside the weights, and multiplications and
    additions."""

    name: str
    seconds: float
    memory: float
    operations: float = 0.0


@dataclass(frozen=True)
class Plan:
    """steps: in their order; weights: bytes of the model as it is computed with; dtype: in words;
    machine: bytes of memory that it has."""

    command: str
    dtype: str
    weights: float
    steps: tuple[Step, ...]
    machine: int

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def operations(self) -> float:
        return sum(step.operations for step in self.steps)

    @property
    def memory(self) -> float:
        """Bytes at the peak."""
        return self.weights + _START[1] + max(step.memory for step in self.steps)

    def check(self) -> None:
        """Raises RomeError where it does not fit."""
        if self.memory > self.machine:
            raise RomeError(f"rome-mlx {self.command} takes about {_gb(self.memory)} and this "
                            f"machine has {_gb(self.machine)}; take a 4-bit copy of the model "
                            "(mlx_lm.convert -q), or a smaller one")

    def __str__(self) -> str:
        lines = [f"{self.command}: about {_duration(self.seconds)} and {_gb(self.memory)} of "
                 f"{_gb(self.machine)} (weights {_gb(self.weights)}, {self.dtype})"]
        lines += [f"  {step.name:<14}{_duration(step.seconds):>10}   {_gb(step.memory)} more"
                  for step in self.steps]
        return "\n".join([*lines, f"  arithmetic  {self.operations / 1e12:>12.3g} TFLOP"])


def plan(source=None, command: str = "edit", *, dtype: str = "auto", method: str = "rome",
         layers: int | str | list[int] | None = None, moments=None, cases: int = 1,
         tokens: int = 12, later: int | None = None, samples: int = 10, kind: str = "mlp",
         window: int | None = None, all_tokens: bool = False, corpus_tokens: int = 100_000,
         verification: bool = True, measures: Sequence[str] = (),
         trust_remote_code: bool = False) -> Plan:
    """What a command will take.

        print(rm.plan("mlx-community/Llama-3.2-1B-4bit", "edit"))

    Args:
        source: what `load` takes.
        command: trace, locate, moments, edit or eval; cases: facts of locate times their kinds,
            records of eval, requests of edit.
        dtype, trust_remote_code: of `load`; method, moments, verification: of an edit; layers: its
            own or those of the moments command. Missing moments are counted in.
        tokens: of a prompt; later: those from the subject's last on (None: half of them); samples,
            kind, window (None: by the model's depth), all_tokens: of a trace; corpus_tokens: of
            the moments command; measures: further ones, of eval.

    Raises RomeError for an unknown command, and for a model that cannot be loaded.
    """
    if command not in COMMANDS:
        raise RomeError(f"command {command!r} is unknown; choose from {', '.join(COMMANDS)}")
    model, tokenizer = load(source, dtype="stored", lazy=True, trust_remote_code=trust_remote_code,
                            tokenizer_config={"trust_remote_code": trust_remote_code})
    work = _Work(model, loads_packed(model, dtype), dtype, tokens, later, samples)
    if command == "moments":
        steps = [work.moments(corpus_tokens, len(layers or [0]))]
    elif command in ("trace", "locate"):
        steps = [work.trace(kind, all_tokens, cases, window)]
    else:
        steps = _writing(work, model, tokenizer, method, layers, moments, cases)
        if command == "eval":
            steps += [work.reading(_READ_PER_CASE * cases),
                      *(replace(work.reading(2 * find_probe(name).texts * cases), name=name)
                        for name in measures)]
        elif verification:
            traced = work.trace(kind, False, cases)
            steps = [traced, *steps, work.verification(traced, cases)]
    return Plan(command, work.words, work.weights, (work.start(), *steps), memory_of_machine())


def _writing(work: "_Work", model, tokenizer, method: str, layer, moments, cases) -> list[Step]:
    """The steps of an edit, with the moments that are not at hand."""
    if method not in METHODS:  # nothing is written
        return []
    found = find_method(method)
    where = layers_to_edit(work.decoder, found, layer)
    where = [where] if isinstance(where, int) else where or []
    steps = work.edit(found, cases, len(where))
    if found.needs_moments:
        try:
            find_moments(model, tokenizer, where, moments)
        except RomeError:
            steps.insert(0, work.moments(THIN * work.width, len(where)))
    return steps


class _Work:
    """A model's sizes, and what this machine does with them."""

    def __init__(self, model, packed: bool, dtype: str, tokens: int, later: int | None,
                 samples: int):
        decoder = self.decoder = Decoder(model)
        self.packed, self.tokens, self.samples = packed, tokens, samples
        self.later = later or max(1, tokens // 2)
        self.stored = stored_bytes(model)
        half = dtype == "bfloat16"
        self.weights = (self.stored if dtype == "stored" else 1.12 * self.stored if packed
                        else floats_of(model) / (1 + half))
        self.words = dtype if dtype != "auto" else "its codes" if packed else "float32"
        self.layers, self.dim = len(decoder.layers), decoder.dim
        self.width = decoder.key_width
        self.vocabulary = weight_shape(decoder.embedding)[0]
        self.block = sum(float(np.prod(weight_shape(m))) for _, m in
                         decoder.layers[0].named_modules()
                         if "weight" in m and m.weight.ndim == 2)
        self.numbers = self.block * self.layers
        self.head = float(self.dim * self.vocabulary)

    def start(self) -> Step:
        """Imports, and reading the weights: what is read is held beside what it becomes."""
        again = 0 if self.weights <= 1.2 * self.stored else self.stored
        seconds = (self.stored / _READING + self.weights / _DEQUANTIZED
                   if again and has_codes(self.decoder.model)
                   else max(self.stored, self.weights) / _READING)
        return Step("start", _START[0] + seconds, again)

    def trace(self, kind: str, all_tokens: bool, cases: int, window: int | None = None) -> Step:
        """The staircase: cells that join at their layers, of the tokens from the restored one on;
        before it the clean and the corrupted run; the staircase that decides where it is
        another."""
        later = self.later
        positions = [*range(1, later + 1)] if all_tokens else [later]
        if kind != "mlp" or window not in (None, scaled_window(self.layers)):
            positions.append(later)
        cells = self.layers * self.samples
        products = sum(cells * (self.numbers / 2 * n + self.head) for n in positions)
        products += (1 + self.samples) * self.numbers * self.tokens
        passes = len(positions) + 2
        kept = 4 * 3 * self.layers * (1 + self.samples) * self.tokens * self.dim  # of both runs
        return self._step("trace", cases * products, "trace", cases * passes,
                          min(self._holding(cells * later), _TRACING) + kept
                          + 8 * cells * self.vocabulary)

    def moments(self, tokens: int, layers: int) -> Step:
        """Counting, and a look at what was counted: factors of C, and of halves of it."""
        products = tokens * (self.numbers / 4 + layers * self.width**2 / 2)
        products += layers * _FACTORS * self.width**3
        return self._step("moments", products, "moments", tokens / 2048 / 4,
                          self._holding(2048) + layers * 12 * self.width**2 + _CORPUS)

    def edit(self, found: Method, cases: int, layers: int) -> list[Step]:
        """The templates' sampling, and the values' steps: forward and back above the layer."""
        hp = found.resolve(None, self.decoder)
        steps = getattr(hp, "v_num_grad_steps", getattr(hp, "steps", 1))
        contexts = getattr(hp, "contexts", _CONTEXTS)
        rows = contexts * self.later
        sampled = self._step("templates", 50 * _CONTEXTS * self.numbers, "templates", 15,
                             self._holding(_CONTEXTS * 10))
        products = 2 * steps * cases * (0.85 * self.numbers * rows + self.head * contexts)
        square = 8 * self.width**2 * 2 if found.needs_moments else 0
        together = min(cases, AT_ONCE) if found.equations else 1
        value = self._step("value", products, "value", 2 * steps * cases,
                           max(square, self._holding(together * rows, _KEPT * self.layers)
                               + 16 * together * contexts * self.vocabulary))
        return [sampled, replace(value, seconds=value.seconds + layers * self.width**3 / _FACTORED)]

    def verification(self, traced: Step, cases: int) -> Step:
        """A trace of the edited model, four texts of 50 tokens, and the side effects."""
        read = self.reading(14)
        texts = self._step("texts", cases * 4 * 50 * self.numbers, "reading",
                           cases * 50 * (not self.packed), 0)
        parts = (traced, texts, read)
        return Step("verification", sum(part.seconds for part in parts),
                    max(part.memory for part in parts), sum(part.operations for part in parts))

    def reading(self, texts: float) -> Step:
        """So many texts of 64 tokens, with every token's prediction."""
        products = texts * 64 * (self.numbers + self.head)
        return self._step("reading", products, "reading", texts / 16,
                          self._holding(16 * 64) + 4 * 16 * 64 * self.vocabulary)

    def _step(self, name: str, products: float, share: str, passes: float,
              memory: float) -> Step:
        """products: a multiplication and an addition each; passes: times that all weights are
        unpacked."""
        unpacked = passes * self.numbers / unpacking_rate() if self.packed else 0
        return Step(name, 2 * products / (self._rate * _SHARES[share]) + unpacked, memory,
                    2 * products)

    @cached_property
    def _rate(self) -> float:
        """Operations a second of large float32 products, here and now."""
        a = mx.random.normal((1024, 1024))
        mx.eval(a)
        return 2 * 1024**3 / min(_timed(lambda: mx.eval(a @ a)) for _ in range(5))

    def _holding(self, rows: float, blocks: float = 1) -> float:
        """Bytes of so many blocks' activations."""
        slices = 4 * SLICE if self.packed else 0
        return 4 * rows * blocks * numbers_a_token(self.decoder) + slices


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    return (f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min" if seconds < 6000
            else f"{seconds / 3600:.1f} h")
