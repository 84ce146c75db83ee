"""Does the model still stand? Edits that follow one another can wreck it, all at once.

What is watched: by how much each edited weight has grown, and how well the model still reads a
short text on nothing in particular (perplexity). The limits are a choice, made after a hundred
edits in a row on the default model, in one order (docs/editing.md).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx
import numpy as np

from ..models.applied import edits_of
from ..models.decoder import Decoder
from ..models.hooks import find_module
from ..models.identity import original_weight
from ..models.probabilities import chosen_log_probabilities, padded
from .side_effects import neutral_tokens

#: warn when a weight's norm, or the perplexity, has grown by more than this factor
NORM_LIMIT, PERPLEXITY_LIMIT = 1.5, 1.2
_LENGTH = 64  # tokens of a line
_TEXTS = 16  # rows read at once


@dataclass(frozen=True)
class Health:
    """edits: how many requests are written; growth: {module path: ‖W + ΔW‖ / ‖W‖}, Frobenius;
    perplexity on data/neutral.txt, and before the edits."""

    edits: int
    growth: dict[str, float]
    perplexity: float
    perplexity_before: float

    def warnings(self) -> list[str]:
        """A sentence for everything that is past its limit."""
        told = [f"the norm of {path} has grown to {factor:.2f} times its own (limit {NORM_LIMIT})"
                for path, factor in self.growth.items() if factor > NORM_LIMIT]
        if not self.perplexity <= PERPLEXITY_LIMIT * self.perplexity_before:
            told.append(f"perplexity on a neutral text rose from {self.perplexity_before:.1f} to "
                        f"{self.perplexity:.1f} (limit {PERPLEXITY_LIMIT} times)")
        return [f"after {self.edits} edits {one}: the model may be collapsing; take edits back, "
                "or write them at once with memit" for one in told]

    def to_json(self) -> dict:
        return {**asdict(self), "warnings": self.warnings()}


class Guard:
    """Watches a model while edits are applied to it; made before them.

        guard = rm.Guard(model, tokenizer)
        for edit in rm.in_sequence(model, tokenizer, requests, rm.rome):
            print(guard.check().warnings())
    """

    def __init__(self, model, tokenizer):
        self.model, self._rows = model, neutral_tokens(model, tokenizer, None, _LENGTH)
        self.before = perplexity(model, self._rows)

    def check(self) -> Health:
        """The model's state now."""
        edits = edits_of(self.model)
        return Health(sum(len(edit.requests) for edit in edits),
                      growth(self.model),
                      perplexity(self.model, self._rows), self.before)


def growth(model) -> dict[str, float]:
    """{module path: ‖W + ΔW‖ / ‖W‖}, Frobenius, of the weights that applied edits change."""
    edits, found = edits_of(model), {}
    for path in dict.fromkeys(path for edit in edits for path in edit.deltas):
        weight = np.array(original_weight(find_module(model, path)), np.float64)
        change = sum(edit.deltas[path].change.T for edit in edits if path in edit.deltas)
        found[path] = float(np.linalg.norm(weight + change) / np.linalg.norm(weight))
    return found


def perplexity(model, rows: Sequence[Sequence[int]]) -> float:
    """exp of the mean NLL per token over rows of ids, each read alone."""
    decoder, total, read = Decoder(model), 0.0, 0
    order = sorted((row for row in rows if len(row) > 1), key=len)
    with decoder.fast():
        for i in range(0, len(order), _TEXTS):
            some = order[i: i + _TEXTS]
            h = decoder.run(decoder.enter(decoder.embed(padded(some))))
            at = [(j, t) for j, row in enumerate(some) for t in range(len(row) - 1)]
            h = h[tuple(mx.array(x) for x in zip(*at, strict=True))]
            log_p = chosen_log_probabilities(decoder.logits(h), [some[j][t + 1] for j, t in at])
            total -= float(np.array(log_p, np.float64).sum())
            read += len(at)
    return float(np.exp(total / read))
