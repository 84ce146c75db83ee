"""How fast is it? One machine, one run, medians.

  python benchmarks/speed.py trace --json speed.json

trace: the whole map of a 10-token prompt with 10 samples on the default model, by kind. Beside it
the direct way, a full run of the model for every cell, with the same BLAS: a seeded tenth of the
cells, scaled to the map (--full: all of them). Arithmetic is counted, and compared with what a
large float32 matrix product reaches here. torch_s and torch_ratio are null: no PyTorch tool is
timed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# isort: off
import rome_mlx as rm  # noqa: E402  a fast BLAS before mlx
# isort: on

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from oracles import Traced  # noqa: E402

from rome_mlx.decoder import Decoder  # noqa: E402
from rome_mlx.loading import weight_shape  # noqa: E402
from rome_mlx.tracing.corruption import corruption  # noqa: E402
from rome_mlx.tracing.restore import hidden_cells, window_cells  # noqa: E402

FACT = rm.Fact("The {} is located in the city of", "Eiffel Tower")
SAMPLES, WINDOW = 10, 10


def seconds(work, repeats: int) -> float:
    """Median wall time of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_gflops() -> float:
    """Best of ten large float32 matrix products."""
    size = 2048
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(a, b)
    return 2 * size**3 / 1e9 / min(seconds(lambda: mx.eval(a @ b), 1) for _ in range(10))


def trace_rows(full: bool, repeats: int) -> list[dict]:
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
    rows = []
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
        rows.append({"name": kind, "ours_s": ours_s, "direct_s": direct_s, "torch_s": None,
                     "direct_ratio": direct_s / ours_s, "torch_ratio": None,
                     "necessary_gflop": necessary_gflop(decoder, kind, tokens, begin),
                     "direct_cells": len(cells), "largest_difference": float(apart)})
        print(f"{kind}: {ours_s:.1f} s, direct {direct_s:.1f} s "
              f"({direct_s / ours_s:.1f} times), apart by {apart:.1e}", file=sys.stderr)
    return rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("trace",))
    parser.add_argument("--full", action="store_true", help="the direct way over all cells")
    parser.add_argument("--repeats", type=int, default=5, help="of the fast way (default 5)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    peak = peak_gflops()
    rows = trace_rows(args.full, args.repeats)
    for row in rows:
        row["share_of_peak"] = row["necessary_gflop"] / row["ours_s"] / peak
    result = {"machine": f"{platform.system()} {platform.machine()}, mlx on "
                         f"{mx.default_device()}", "threads": os.cpu_count(),
              "peak_gflops": peak, "rows": rows}
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
