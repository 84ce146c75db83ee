"""What an edit does to text that has nothing to do with it."""

from base64 import b64decode, b64encode

import mlx.core as mx
import numpy as np

from ..models.decoder import Decoder
from ..models.kept import Kept
from ..models.probabilities import log_probabilities, padded
from ..models.tokens import encode
from ..storage.places import read_lines

_TEXTS = 3  # paragraphs of the shipped text, some 250 tokens
_ROWS = 128  # positions whose vocabularies are held at once


def neutral_tokens(model, tokenizer, paragraphs: int | None = _TEXTS,
                   tokens: int | None = None) -> list[list[int]]:
    """The first paragraphs, or all, of the shipped text on nothing in particular: the first
    `tokens` of each, or as far as the model can read."""
    return [encode(tokenizer, text).ids[:Decoder(model).positions][:tokens]
            for text in read_lines("neutral.txt")[:paragraphs]]


def final_states(model, rows: list[list[int]]) -> list[mx.array]:
    """The last layer's output at every position but the last, (tokens - 1, dim) for each row."""
    decoder = Decoder(model)
    with decoder.fast():
        h = decoder.run(decoder.enter(decoder.embed(padded(rows))))
    states = [row[:len(ids) - 1] for row, ids in zip(h, rows, strict=True)]
    mx.eval(states)
    return states


def kept_states(kept: Kept, model, rows: list[list[int]]) -> list[mx.array]:
    """`final_states` of the model that `kept` is of, computed once."""

    def compute() -> dict:
        states = np.concatenate([np.array(x.astype(mx.float32))
                                 for x in final_states(model, rows)])
        return {"dim": states.shape[1], "float32": b64encode(states.tobytes()).decode()}

    found = kept.get("final states", {"rows": rows}, "", compute)
    states = np.frombuffer(b64decode(found["float32"]), np.float32).reshape(-1, found["dim"])
    ends = np.cumsum([len(ids) - 1 for ids in rows])
    dtype = Decoder(model).embed([[0]]).dtype
    return [mx.array(part).astype(dtype) for part in np.split(states, ends[:-1])]


def drift(model, rows: list[list[int]], before: list[mx.array], after: list[mx.array]) -> dict:
    """How far next-token predictions moved between two results of `final_states`.

    KL(before ‖ after) in nats per token, the percentage of positions with another first choice, the
    perplexity before and after, and the number of tokens predicted.
    """
    logits = Decoder(model).logits
    targets = np.concatenate([ids[1:] for ids in rows])
    one, other = mx.concatenate(before), mx.concatenate(after)
    parts = []
    for i in range(0, len(targets), _ROWS):
        both = log_probabilities(logits(mx.concatenate([one[i:i + _ROWS], other[i:i + _ROWS]])))
        p, q = np.split(np.array(both), 2)
        index = targets[i:i + _ROWS, None]
        parts.append(np.stack([
            (np.exp(p) * (p - q)).sum(-1, dtype=np.float64), p.argmax(-1) != q.argmax(-1),
            *(np.take_along_axis(x, index, axis=1)[:, 0] for x in (p, q))]))
    kl, changed, log_before, log_after = np.concatenate(parts, axis=1)
    return {"tokens": len(kl), "kl": float(kl.mean()),
            "first_choice_changed": 100 * float(changed.mean()),
            "perplexity_before": float(np.exp(-log_before.mean())),
            "perplexity_after": float(np.exp(-log_after.mean()))}
