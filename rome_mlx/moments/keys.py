"""The keys that a layer's down projection reads."""

from collections.abc import Iterable, Iterator

import mlx.core as mx

from ..models.decoder import Decoder
from ..models.hooks import hooked


def layer_keys(decoder: Decoder, ids, layers: Iterable[int]) -> Iterator[tuple[int, mx.array]]:
    """(layer, keys (rows, tokens, dim)) for rising layers, in one pass.

    Nothing is computed beyond the last layer's keys.
    """
    h, start = decoder.enter(decoder.embed(ids)), 0
    for layer in layers:
        h = decoder.run(h, start, layer)
        seen: list[mx.array] = []

        def keep(x, seen=seen):
            seen.append(x)
            return x

        with hooked(decoder.module(layer, "down"), before=keep):
            h, start = decoder.block(layer, h), layer + 1
        yield layer, seen[0]
