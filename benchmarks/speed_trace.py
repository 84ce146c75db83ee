"""Seconds for the whole map of a 10-token prompt with 10 samples, by kind.

Beside it the direct way, a full run of the model for every cell, with the same BLAS: a seeded
tenth of the cells, scaled to the map (full: all of them). Arithmetic is counted.
"""

import sys

import numpy as np
from oracles import Traced
from timing import seconds

import rome_mlx as rm
from rome_mlx.decoder import Decoder
from rome_mlx.loading import weight_shape
from rome_mlx.tracing.corruption import corruption
from rome_mlx.tracing.restore import hidden_cells, window_cells

FACT = rm.Fact("The {} is located in the city of", "Eiffel Tower")
SAMPLES, WINDOW = 10, 10


def rows(full: bool, repeats: int) -> list[dict]:
    """A row a kind: ours and the direct way over the same cells, and that they agree."""
    model, tokenizer = rm.load()
    decoder = Decoder(model)
    rule = corruption(decoder, tokenizer, "s3")
    first = rm.trace(model, tokenizer, FACT, kind="hidden", samples=1, noise=rule,
                     token_range="subject_last")
    begin, end = first.subject_range
    tokens, layers = len(first.input_ids), len(decoder.layers)
    direct = Traced(model, first.input_ids, begin,
                    rule.noise(SAMPLES, end - begin, decoder.dim), False)
    cells = [(t, layer) for t in range(tokens) for layer in range(layers)]
    if not full:
        chosen = np.random.RandomState(0).permutation(len(cells))[:len(cells) // 10]
        cells = [cells[i] for i in sorted(chosen)]
    table = []
    for kind in ("hidden", "mlp", "attn"):
        maps, found = [], []

        def ours(kind=kind, maps=maps):
            maps.append(rm.trace(model, tokenizer, FACT, kind=kind, samples=SAMPLES, noise=rule,
                                 window=WINDOW))

        def cell_by_cell(kind=kind, found=found):
            found[:] = [direct.cell(t, layer, kind, WINDOW).mean() for t, layer in cells]

        ours_s = seconds(ours, repeats)
        direct_s = seconds(cell_by_cell, 1 if full else 3) * tokens * layers / len(cells)
        apart = max(abs(maps[0].scores[t, layer] - p)
                    for (t, layer), p in zip(cells, found, strict=True))
        table.append({"name": kind, "ours_s": ours_s, "direct_s": direct_s, "torch_s": None,
                     "direct_ratio": direct_s / ours_s, "torch_ratio": None,
                     "necessary_gflop": necessary_gflop(decoder, kind, tokens, begin),
                     "direct_cells": len(cells), "largest_difference": float(apart)})
        print(f"{kind}: {ours_s:.1f} s, direct {direct_s:.1f} s "
              f"({direct_s / ours_s:.1f} times), apart by {apart:.1e}", file=sys.stderr)
    return table


def necessary_gflop(decoder: Decoder, kind: str, tokens: int, begin: int) -> float:
    """Matrix products of the staircase: each cell's layers from where it joins, for the positions
    from its token on, and the vocabulary at the last one. Clean and corrupted runs are left out."""
    layers = len(decoder.layers)
    cells = hidden_cells(layers) if kind == "hidden" else window_cells(layers, WINDOW)
    steps = sum(layers - cell.start for cell in cells)
    numbers = sum(np.prod(weight_shape(m)) for _, m in decoder.layers[0].named_modules()
                  if "weight" in m and m.weight.ndim == 2)
    suffixes = [tokens - t for t in range(begin, tokens)]
    products = 2 * float(numbers) * steps * sum(suffixes)
    vocabulary = 2.0 * np.prod(weight_shape(decoder.embedding)) * layers * len(suffixes)
    return SAMPLES * (products + vocabulary) / 1e9
