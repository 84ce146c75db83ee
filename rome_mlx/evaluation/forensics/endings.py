"""How the subject of a low-rank change ends, where no list of subjects has it.

The key of a subject is read at its last token, and mostly that token's own: of the whole
vocabulary the one that fits the change's row space best is often where the subject ends.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import mlx.core as mx
import numpy as np

from ...models.decoder import Decoder, Prefix
from ...models.hooks import hooked
from ...models.tokens import encode
from ...models.weights import weight_shape
from .names import CONTEXTS, Rows

_ROWS = 1024  # tokens run at once


def endings(model, tokenizer, rows: Sequence[Rows], count: int = 5) -> list[tuple[str, float]]:
    """(text, score) of the tokens that fit the row spaces best, the best first.

    model: without the change. Every token with a letter or a digit stands alone behind the first
    context; the score is that of `named`, mean over layers.
    """
    decoder = Decoder(model)
    tokens = [i for i in range(min(len(tokenizer), weight_shape(decoder.embedding)[0]))
              if any(sign.isalnum() for sign in tokenizer.decode([i]))]
    prefixes = _read(decoder, encode(tokenizer, CONTEXTS[0].removesuffix(" {}")).ids, rows)
    scores = np.concatenate([_scores(decoder, tokens[i: i + _ROWS], prefixes, rows)
                             for i in range(0, len(tokens), _ROWS)])
    return [(tokenizer.decode([tokens[i]]), float(scores[i]))
            for i in np.argsort(-scores, kind="stable")[:count]]


def _read(decoder: Decoder, ids: Sequence[int], rows: Sequence[Rows]) -> list[Prefix]:
    """The context's attention keys and values, of the layers up to the last changed one."""
    prefixes = decoder.prefixes()[:max(one.layer for one in rows) + 1]
    with decoder.fast():
        mx.eval(decoder.run(decoder.enter(decoder.embed([ids])), 0, len(prefixes), prefixes))
    return [prefix.upto(len(ids)) for prefix in prefixes]


def _scores(decoder: Decoder, tokens: Sequence[int], prefixes: Sequence[Prefix],
            rows: Sequence[Rows]) -> np.ndarray:
    """(tokens,): how well the key at each, behind the prefix, fits."""
    seen = {}
    with decoder.fast(), ExitStack() as stack:
        for one in rows:
            def keep(x, layer=one.layer):
                seen[layer] = x[:, -1]
                return x

            stack.enter_context(hooked(decoder.module(one.layer, "down"), before=keep))
        h = decoder.enter(decoder.embed([[token] for token in tokens]), prefixes[0].length)
        mx.eval(decoder.run(h, 0, len(prefixes), [Prefix(p.keys, p.values) for p in prefixes]))
    found = [one.coordinates(np.array(seen[one.layer].astype(mx.float32), np.float64))
             for one in rows]
    return np.mean([np.linalg.norm(part, axis=1) for part in found], axis=0)
