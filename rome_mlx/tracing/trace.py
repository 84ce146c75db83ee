"""Trace one fact: hide the subject, put one state back, see how much of the answer returns."""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..errors import RomeError
from ..facts import Fact
from ..models.decoder import Decoder
from ..models.tokens import encode
from ..models.weights import weight_shape
from .corruption import Corruption, corruption
from .decision import Decision, decide, first_candidate
from .restore import Restoration, hidden_cells, window_cells
from .runs import run

KINDS = ("hidden", "mlp", "attn")


@dataclass(frozen=True)
class Trace:
    """P(answer) with one state restored, for every traced token and layer.

    scores: (tokens, layers) float32, mean over noise samples; positions: the prompt position of
    each row; deviations: the standard deviation over samples, like scores. The rest says what was
    traced. Probabilities are fractions, recovery is in percent.
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
    def decision(self) -> Decision:
        """The layer that decides at the subject's last token, and whether it is clear."""
        last = self.subject_range[1] - 1
        if last not in self.positions:
            raise RomeError("the subject's last token was not traced; trace it to name a layer")
        effect = self.indirect_effect[self.positions.index(last)]
        return decide(effect, self.total_effect, first_candidate(self.kind, self.window))

    @property
    def decisive_layer(self) -> int:
        return self.decision.layer

    def to_json(self) -> dict:
        """As `rome-mlx trace --json` writes it."""
        names = ("prompt", "subject", "kind", "severed", "window", "samples", "noise",
                 "noise_level", "answer", "clean_prob", "corrupted_prob", "input_ids", "tokens")
        last = self.subject_range[1] - 1
        return {**{name: getattr(self, name) for name in names},
                "subject_range": list(self.subject_range), "token_range": self.token_range,
                "positions": self.positions, "scores": self.scores.tolist(),
                "decisive_layer": self.decisive_layer if last in self.positions else None}

    def plot(self, path):
        """Draw the tokens × layers map to an image file."""
        from ..view.plot import plot_trace

        return plot_trace(self, path)


def trace(model, tokenizer, fact: Fact, *, kind: str = "hidden", samples: int = 10,
          noise: str | float | Corruption = "s3", window: int = 10, severed: str | None = None,
          token_range: str | tuple[int, int] = "all", replace: bool = False,
          noise_seed: int = 1, memory: float = 1.0) -> Trace:
    """Causal trace of one fact (ROME paper, section 2; figure 1 and 2).

    kind: what is restored: a block's output ("hidden"), or the outputs of `window` MLPs ("mlp")
        or attentions ("attn") around each layer, [l - window/2, l + window/2).
    severed: "mlp" or "attn": hold that module's output at the restored token at its corrupted
        value in all later layers (figure 3).
    noise, replace, noise_seed, samples: see `corruption`; the same noise in every cell.
    token_range: "all", "subject_last" or a range (begin, end) of prompt positions.
    memory: GB that the staircase's activations may take, about.

    The model is the same before and after. Raises RomeError for values out of range.
    """
    check_values(kind, samples, window, severed)
    decoder = Decoder(model)
    if not isinstance(noise, Corruption):
        noise = corruption(decoder, tokenizer, noise, replace=replace)
    encoded = encode(tokenizer, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    positions = _positions(token_range, begin, end, len(encoded.ids))

    embeddings = decoder.embed([encoded.ids])
    clean = run(decoder, embeddings)
    noisy = noise.apply(embeddings, begin, end, samples, noise_seed)[:, begin:]
    corrupted = run(decoder, noisy, begin, clean.prefix(begin))

    probabilities = mx.softmax(decoder.logits(clean.inputs[-1][0, -1]).astype(mx.float32))
    answer = int(mx.argmax(probabilities))
    restoration = Restoration(decoder, clean, corrupted, answer, kind, severed,
                              _rows(decoder, len(encoded.ids) - begin, memory))
    base = restoration.probabilities(corrupted.inputs[-1][:, -1])
    layers = len(decoder.layers)
    cells = hidden_cells(layers) if kind == "hidden" else window_cells(layers, window)
    rows = [np.tile(base, (layers, 1)) if t < begin else restoration.scores(t, cells)
            for t in positions]
    cells_samples = np.stack(rows)  # (tokens, layers, samples)
    return Trace(
        fact.prompt, fact.subject, kind, severed, window, samples, noise.rule, noise.level,
        tokenizer.decode([answer]), answer, float(probabilities[answer]), float(base.mean()),
        encoded.ids, [tokenizer.decode([i]) for i in encoded.ids], (begin, end), token_range,
        positions, cells_samples.mean(-1), cells_samples.std(-1),
    )


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


def _rows(decoder: Decoder, tokens: int, memory: float) -> int:
    """How many rows fit: about six MLP-wide and eight residual-wide float arrays at once."""
    width = 6 * weight_shape(decoder.module(decoder.dense_layers[0], "down"))[1] + 8 * decoder.dim
    return max(1, int(memory * 1e9 / (4 * width * max(1, tokens))))
