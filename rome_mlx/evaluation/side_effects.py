"""What an edit does to text that has nothing to do with it."""

import mlx.core as mx
import numpy as np

from ..models.decoder import Decoder
from ..models.probabilities import log_probabilities
from ..models.tokens import encode
from ..storage.places import read_lines

_TEXTS = 3  # paragraphs of the shipped text, some 250 tokens
_ROWS = 64  # positions whose vocabularies are held at once


def neutral_tokens(model, tokenizer, paragraphs: int | None = _TEXTS,
                   tokens: int | None = None) -> list[list[int]]:
    """The first paragraphs, or all, of the shipped text on nothing in particular: the first
    `tokens` of each, or as far as the model can read."""
    return [encode(tokenizer, text).ids[:Decoder(model).positions][:tokens]
            for text in read_lines("neutral.txt")[:paragraphs]]


def final_states(model, rows: list[list[int]]) -> list[mx.array]:
    """The last layer's output at every position but the last, (tokens - 1, dim) for each row."""
    decoder = Decoder(model)
    states = [decoder.run(decoder.enter(decoder.embed([ids])))[0, :-1] for ids in rows]
    mx.eval(states)
    return states


def drift(model, rows: list[list[int]], before: list[mx.array], after: list[mx.array]) -> dict:
    """How far next-token predictions moved between two results of `final_states`.

    KL(before ‖ after) in nats per token, the percentage of positions with another first choice, the
    perplexity before and after, and the number of tokens predicted.
    """
    logits = Decoder(model).logits
    targets = mx.concatenate([mx.array(ids[1:]) for ids in rows])
    one, other = mx.concatenate(before), mx.concatenate(after)
    parts = []
    for i in range(0, len(targets), _ROWS):
        p, q = (log_probabilities(logits(h[None, i:i + _ROWS])[0]) for h in (one, other))
        index = targets[i:i + _ROWS, None]
        parts.append(np.stack([np.array(x, np.float64) for x in (
            (mx.exp(p) * (p - q)).sum(-1), p.argmax(-1) != q.argmax(-1),
            *(mx.take_along_axis(x, index, axis=1)[:, 0] for x in (p, q)))]))
    kl, changed, log_before, log_after = np.concatenate(parts, axis=1)
    return {"tokens": len(kl), "kl": float(kl.mean()),
            "first_choice_changed": 100 * float(changed.mean()),
            "perplexity_before": float(np.exp(-log_before.mean())),
            "perplexity_after": float(np.exp(-log_after.mean()))}
