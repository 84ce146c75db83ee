"""Seconds for the whole map of a 10-token prompt with 10 samples, by kind.

Beside it the direct way, a full run of the model for every cell, with the same BLAS: a seeded
tenth of the cells, scaled to the map (full: all of them), and over the same cells what users of
PyTorch would pick. Arithmetic is counted.
"""

import sys
from pathlib import Path

import numpy as np
import torch_tracing
from oracles import Traced
from timing import seconds

import rome_mlx as rm
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.loading import _default_model
from rome_mlx.models.weights import weight_shape
from rome_mlx.tracing.corruption import corruption
from rome_mlx.tracing.restore import hidden_cells, joins, window_cells

FACT = rm.Fact("The {} is located in the city of", "Eiffel Tower")
SAMPLES, WINDOW = 10, 10


def rows(full: bool, repeats: int) -> list[dict]:
    """A row a kind: ours and the slow ways over the same cells, and that they agree."""
    model, tokenizer = rm.load(dtype="float32")
    decoder = Decoder(model)
    rule = corruption(decoder, tokenizer, "s3")
    first = rm.trace(model, tokenizer, FACT, kind="hidden", samples=1, noise=rule,
                     token_range="subject_last")
    ids, (begin, end), layers = first.input_ids, first.subject_range, len(decoder.layers)
    noise = rule.noise(SAMPLES, end - begin, decoder.dim)
    direct = Traced(model, ids, begin, noise, False)
    ways = {"direct": lambda *cell: float(direct.cell(*cell, WINDOW).mean()),
            **torch_tracing.peers(Path(_default_model()), ids, begin, noise, WINDOW)}
    cells = [(t, layer) for t in range(len(ids)) for layer in range(layers)]
    share = 1.0 if full else 0.1
    chosen = np.random.RandomState(0).permutation(len(cells))[:round(share * len(cells))]
    cells = [cells[i] for i in sorted(chosen)]
    table = []
    for kind in ("hidden", "mlp", "attn"):
        maps = []
        ours_s = seconds(lambda kind=kind, maps=maps: maps.append(rm.trace(
            model, tokenizer, FACT, kind=kind, samples=SAMPLES, noise=rule, window=WINDOW)),
            repeats)
        scores = [maps[0].scores[cell] for cell in cells]
        timed = {name: cell_by_cell(way, cells, kind, 1 if full else 3)
                 for name, way in ways.items()}
        whole = {name: took / share for name, (took, _) in timed.items()}
        direct_s = whole.pop("direct")
        torch_s = min(whole.values()) if whole else None
        apart = {name: float(np.abs(np.subtract(scores, found)).max())
                 for name, (_, found) in timed.items()}
        table.append({
            "name": kind, "ours_s": ours_s, "direct_s": direct_s, "torch_s": torch_s,
            "direct_ratio": direct_s / ours_s, "torch_ratio": torch_s and torch_s / ours_s,
            "torch_each_s": whole, "slow_cells": len(cells), "largest_difference": apart,
            "necessary_gflop": necessary_gflop(decoder, kind, len(ids), begin)})
        said = ", ".join(f"{name} {took:.1f} s" for name, took in whole.items())
        print(f"{kind}: {ours_s:.1f} s, direct {direct_s:.1f} s {said}; "
              f"apart by {max(apart.values()):.1e}", file=sys.stderr)
    return table


def cell_by_cell(way, cells, kind: str, repeats: int) -> tuple[float, list[float]]:
    """Median seconds over the cells, and the probabilities."""
    found: list[float] = []

    def work():
        found[:] = [way(t, layer, kind) for t, layer in cells]

    return seconds(work, repeats), found


def necessary_gflop(decoder: Decoder, kind: str, tokens: int, begin: int) -> float:
    """Matrix products of the staircase: each cell's layers from where it joins, for the positions
    from its token on (the last layer's MLP at one), the vocabulary at the last one, and the first
    layer of a window at its token. Clean and corrupted runs are left out."""
    layers = len(decoder.layers)
    cells = hidden_cells(layers) if kind == "hidden" else window_cells(layers, WINDOW)
    plan = joins(cells)
    whole, mlp = (sum(float(np.prod(weight_shape(m))) for _, m in module.named_modules()
                      if "weight" in m and m.weight.ndim == 2)
                  for module in (decoder.layers[0], decoder.module(0, "mlp")))
    below_last = sum(max(0, layers - 1 - join.layer) for join in plan)
    in_last = sum(join.layer < layers for join in plan)
    alone = 0 if kind == "hidden" else sum(join.trunk is None for join in plan)
    vocabulary = float(np.prod(weight_shape(decoder.embedding))) * layers
    products = sum(below_last * whole * n + in_last * ((whole - mlp) * n + mlp) + alone * whole
                   + vocabulary for n in range(1, tokens - begin + 1))
    return 2 * SAMPLES * products / 1e9
