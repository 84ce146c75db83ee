"""Trace one fact: hide the subject, put one state back, see how much of the answer returns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..errors import RomeError
from ..facts import Fact
from ..intervals import ends, resampled
from ..models.decoder import Decoder
from ..models.kept import Kept
from ..models.probabilities import log_probabilities, top_words
from ..models.tokens import encode
from .corruption import Corruption, corruption
from .decision import Decision, decide, first_candidate, scaled_window
from .restore import Cell, Restoration, hidden_cells, rows_within, window_cells
from .runs import run

KINDS = ("hidden", "mlp", "attn")
_ARRAYS = ("scores", "deviations", "deciding", "by_sample")


@dataclass(frozen=True)
class Trace:
    """P(answer) with one state restored, for every traced token and layer.

    scores: (tokens, layers) float32, mean over noise samples; positions: the prompt position of
    each row; deviations: the standard deviation over samples, like scores; deciding: (layers,)
    P(answer) with the MLPs around each layer restored at the subject's last token, in the window
    that the rule of `decision` reads, whatever kind and window the scores are of. The rest says
    what was traced. Probabilities are fractions, recovery is in percent.

    exact: whether every cell was run, or scores are estimates (`attribution`); deciding_exact: the
    same of deciding; by_sample: (tokens, layers, samples), what scores are the mean of, None for
    estimates.
    """

    prompt: str
    subject: str
    kind: str
    severed: str | None
    window: int
    samples: int
    noise: str
    noise_level: float | None
    answer: str
    answer_id: int
    clean_prob: float
    corrupted_prob: float
    input_ids: list[int]
    tokens: list[str]
    subject_range: tuple[int, int]
    token_range: str | tuple[int, int]
    positions: list[int]
    scores: np.ndarray = field(repr=False)
    deviations: np.ndarray = field(repr=False)
    deciding: np.ndarray = field(repr=False)
    exact: bool = True
    deciding_exact: bool = True
    by_sample: np.ndarray | None = field(default=None, repr=False)

    @property
    def total_effect(self) -> float:
        """Clean minus corrupted probability of the answer (paper, section 2.1)."""
        return self.clean_prob - self.corrupted_prob

    @property
    def indirect_effect(self) -> np.ndarray:
        """(tokens, layers): restored minus corrupted probability."""
        return self.scores - self.corrupted_prob

    @property
    def recovery(self) -> np.ndarray:
        """(tokens, layers): percent of the total effect that restoring brings back."""
        if self.total_effect <= 0:
            raise RomeError(f"corrupting {self.subject!r} does not lower P({self.answer!r}): "
                            "there is nothing to recover; use more noise")
        return 100 * self.indirect_effect / self.total_effect

    @property
    def deciding_effect(self) -> np.ndarray:
        """(layers,) indirect effects that the decision rests on."""
        return self.deciding - self.corrupted_prob

    @cached_property
    def intervals(self) -> np.ndarray | None:
        """(tokens, layers, 2): the 95 % intervals of scores, None for estimates."""
        if self.by_sample is None:
            return None
        return np.stack([intervals(row) for row in self.by_sample])

    @property
    def deciding_intervals(self) -> np.ndarray | None:
        """(layers, 2): those of deciding, None where scores do not hold it."""
        last = self.subject_range[1] - 1
        rule = (self.kind, self.severed, self.window) == ("mlp", None,
                                                          scaled_window(len(self.deciding)))
        if self.by_sample is None or not rule or last not in self.positions:
            return None
        return intervals(self.by_sample[self.positions.index(last)])

    @property
    def decision(self) -> Decision:
        """The peak at the subject's last token by the one rule, and whether it is clear."""
        window = scaled_window(len(self.deciding))
        found = decide(self.deciding_effect, self.total_effect, first_candidate("mlp", window))
        if self.deciding_exact:
            return found
        return replace(found, reason=f"by an estimate, {found.reason}")

    @property
    def decisive_layer(self) -> int | None:
        """The layer of the decision, None where it is not clear."""
        return self.decision.layer if self.decision.clear else None

    def to_json(self) -> dict:
        """As `rome-mlx trace --json` writes it, but for the layer to edit."""
        names = ("prompt", "subject", "kind", "severed", "window", "samples", "noise",
                 "noise_level", "answer", "clean_prob", "corrupted_prob", "input_ids", "tokens")
        return {**{name: getattr(self, name) for name in names},
                "subject_range": list(self.subject_range), "token_range": self.token_range,
                "positions": self.positions, "exact": self.exact, "scores": self.scores.tolist(),
                "decisive_layer": self.decisive_layer, "reason": self.decision.reason}

    def plot(self, path):
        """Draw the tokens × layers map to an image file."""
        from ..view.plot import plot_trace

        return plot_trace(self, path)


def trace(model, tokenizer, fact: Fact, *, kind: str = "hidden", samples: int = 10,
          noise: str | float | Corruption = "s3", window: int = 10, severed: str | None = None,
          token_range: str | tuple[int, int] = "all", replace: bool = False,
          noise_seed: int = 1, memory: float = 1.0) -> Trace:
    """Causal trace of one fact (ROME paper, section 2; figure 1 and 2).

    Args:
        kind: what is restored: a block's output ("hidden"), or the outputs of `window` MLPs
            ("mlp") or attentions ("attn") around each layer, [l - window/2, l + window/2).
        severed: "mlp" or "attn": hold that module's output at the restored token at its corrupted
            value in all later layers (figure 3).
        noise, replace, noise_seed, samples: see `corruption`; the same noise in every cell.
        token_range: "all", "subject_last" or a range (begin, end) of prompt positions.
        memory: GB that the staircase's activations may take, about.

    The model is the same before and after. Raises RomeError for values out of range.
    """
    check_values(kind, samples, window, severed)
    runs = FactRuns(model, tokenizer, fact, samples=samples, noise=noise, replace=replace,
                    noise_seed=noise_seed, memory=memory)
    return runs.trace(kind, window, severed, token_range)


def kept_trace(kept: Kept, model, tokenizer, fact: Fact, **options) -> Trace:
    """`trace` of the model that `kept` is of, computed once where its noise is a rule or a level.
    """
    if isinstance(options.get("noise"), Corruption):
        return trace(model, tokenizer, fact, **options)

    def compute() -> dict:
        found = trace(model, tokenizer, fact, **options)
        return vars(found) | {name: getattr(found, name).tolist() for name in _ARRAYS}

    found = kept.get("trace by sample", {"fact": asdict(fact), **options}, fact.text, compute)
    arrays = {name: np.array(found[name], np.float32) for name in _ARRAYS}
    return Trace(**{**found, **arrays, "subject_range": tuple(found["subject_range"])})


class FactRuns:
    """A fact's clean and corrupted runs, from which any of its traces is read; options as `trace`.
    """

    def __init__(self, model, tokenizer, fact: Fact, *, samples: int = 10,
                 noise: str | float | Corruption = "s3", replace: bool = False,
                 noise_seed: int = 1, memory: float = 1.0):
        self.decoder, self.tokenizer, self.fact = Decoder(model), tokenizer, fact
        self.layers, self.samples, self.memory = len(self.decoder.layers), samples, memory
        self.noise = noise if isinstance(noise, Corruption) else corruption(
            self.decoder, tokenizer, noise, replace=replace)
        encoded = encode(tokenizer, fact.text)
        self.ids, self.subject = encoded.ids, encoded.range(*fact.subject_span)
        begin, end = self.subject
        embeddings = self.decoder.embed([self.ids])
        self.clean = run(self.decoder, embeddings)
        noisy = self.noise.apply(embeddings, begin, end, samples, noise_seed)[:, begin:]
        self.corrupted = run(self.decoder, noisy, begin, self.clean.prefix(begin))
        logits = self.decoder.logits(self.clean.inputs[-1][0, -1])
        self.answer = int(mx.argmax(logits))
        self.clean_prob = float(mx.exp(log_probabilities(logits)[self.answer]))

    def trace(self, kind: str, window: int, severed: str | None,
              token_range: str | tuple[int, int]) -> Trace:
        """The trace of one kind."""
        positions, cells = self.positions(token_range), self.cells(kind, window)
        restoration = self._restoration(kind, severed)
        rows = [np.tile(self.base, (self.layers, 1)) if t < self.subject[0]
                else restoration.scores(t, cells) for t in positions]
        return self.whole(kind, severed, window, token_range, np.stack(rows))

    def row(self, kind: str, window: int, position: int,
            words: int) -> tuple[np.ndarray, list[list[tuple[int, float]]]]:
        """One row of the trace, (layers, samples), and the likeliest next words in each cell."""
        if position < self.subject[0]:  # nothing is corrupted there
            last = self.corrupted.inputs[-1][:, -1]
            said = top_words(self.decoder.logits(last), words)
            return np.tile(self.base, (self.layers, 1)), [said] * self.layers
        return self._restoration(kind, None).words(position, self.cells(kind, window), words)

    def whole(self, kind: str, severed: str | None, window: int,
              token_range: str | tuple[int, int], found: np.ndarray) -> Trace:
        """The trace whose rows were found, (tokens, layers, samples)."""
        positions = self.positions(token_range)
        rule = kind == "mlp" and window == scaled_window(self.layers) and severed is None
        if rule and self.subject[1] - 1 in positions:
            self.deciding = found.mean(-1)[positions.index(self.subject[1] - 1)]
        return self.described(kind, severed, window, token_range, found, self.deciding)

    def described(self, kind, severed, window, token_range, found: np.ndarray,
                  deciding: np.ndarray, exact: bool = True) -> Trace:
        """What was found (tokens, layers, samples), with all that says what it is of."""
        tokenizer, fact = self.tokenizer, self.fact
        return Trace(
            fact.prompt, fact.subject, kind, severed, window, self.samples, self.noise.rule,
            self.noise.level, tokenizer.decode([self.answer]), self.answer,
            self.clean_prob, float(self.base.mean()), self.ids,
            [tokenizer.decode([i]) for i in self.ids], self.subject, token_range,
            self.positions(token_range), found.mean(-1), found.std(-1), deciding, exact, exact,
            found if exact else None)

    def restored(self, kind: str, window: int, position: int, layers: Sequence[int]) -> np.ndarray:
        """(layers,) P(answer) of single cells."""
        cells = self.cells(kind, window)
        return self._restoration(kind, None).scores(
            position, [cells[layer] for layer in layers]).mean(-1)

    def cells(self, kind: str, window: int) -> list[Cell]:
        """What is restored, a cell a layer."""
        return hidden_cells(self.layers) if kind == "hidden" else window_cells(
            self.layers, window)

    def positions(self, token_range) -> list[int]:
        """The prompt positions of a token range. Raises RomeError for one that holds none."""
        return _positions(token_range, *self.subject, len(self.ids))

    @cached_property
    def base(self) -> np.ndarray:
        """(samples,) P(answer) of the corrupted run."""
        return self._restoration("hidden", None).probabilities(self.corrupted.inputs[-1][:, -1])

    @cached_property
    def deciding(self) -> np.ndarray:
        """(layers,) what the decisive layer is read from, see `Trace`."""
        cells = window_cells(self.layers, scaled_window(self.layers))
        return self._restoration("mlp", None).scores(self.subject[1] - 1, cells).mean(-1)

    def _restoration(self, kind: str, severed: str | None) -> Restoration:
        rows = rows_within(self.decoder, len(self.ids) - self.subject[0], self.memory)
        return Restoration(self.decoder, self.clean, self.corrupted, self.answer, kind, severed,
                           rows)


def intervals(found: np.ndarray) -> np.ndarray:
    """(layers, 2): 95 % intervals of a row's means over noise samples, of (layers, samples)."""
    return ends(resampled(found.T))


def check_values(kind, samples, window, severed) -> None:
    """Raises RomeError for values that no model can be traced with."""
    if kind not in KINDS:
        raise RomeError(f"kind {kind!r} is unknown; choose from {', '.join(KINDS)}")
    if severed not in (None, "mlp", "attn"):
        raise RomeError(f"severed path {severed!r} is unknown; choose mlp or attn")
    if severed is not None and severed == kind:
        raise RomeError(f"severed {severed!r} cannot be what is restored; trace hidden states")
    for name, count in (("samples", samples), ("window", window)):
        if count < 1:
            raise RomeError(f"{name} is {count}; give 1 or more")


def _positions(token_range, begin: int, end: int, tokens: int) -> list[int]:
    if token_range == "all":
        return list(range(tokens))
    if token_range == "subject_last":
        return [end - 1]
    try:
        first, last = token_range
        positions = list(range(tokens))[first:last]
    except (TypeError, ValueError):
        positions = []
    if not positions:
        raise RomeError(f"token range {token_range!r} holds no token; give all, subject_last "
                        f"or (begin, end) within 0 to {tokens}")
    return positions
