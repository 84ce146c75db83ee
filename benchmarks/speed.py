"""How fast is it? One machine, one run, medians.

  python benchmarks/speed.py trace edit --json speed.json

Each kind of work is timed beside the direct way in MLX with the same BLAS, and beside PyTorch
where it is installed; the necessary arithmetic is counted, and compared with what a large float32
matrix product reaches here. speed_WORK.py says what is timed. The last lines say of each claim in
docs/checked.md whether it was met, for the work that was done: without arguments, for all.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from timing import mx, peak_gflops

WORKS = ("command", "threads", "edit", "trace", "moments", "eval", "measures", "sequence",
         "serve")


class Claim(NamedTuple):
    """What docs/checked.md says, of which row and number of it, and whether a figure meets it."""

    words: str
    work: str
    row: str
    number: str
    met: Callable[[float], bool]


CLAIMS = [
    Claim("rome-mlx edit within 8 s, with everything at hand", "command", "edit", "ours_s",
          lambda s: s <= 8),
    Claim("--no-verify within 4 s", "command", "edit --no-verify", "ours_s", lambda s: s <= 4),
    Claim("--version within 0.3 s", "command", "--version", "ours_s", lambda s: s <= 0.3),
    Claim("--help within 0.3 s", "command", "--help", "ours_s", lambda s: s <= 0.3),
    Claim("two processes get 80 % of half the machine each", "threads", "threads", "of_half",
          lambda share: share >= 0.8),
    Claim("as fast where mlx is imported first", "threads", "threads", "mlx_first_share",
          lambda share: share >= 0.9),
    Claim("ROME's published steps 5 times as fast as the authors' way in PyTorch", "edit",
          "rome, published", "torch_ratio", lambda ratio: ratio >= 5),
    Claim("an edit by the default model's preset within 1.5 s", "edit", "rome, preset", "ours_s",
          lambda s: s <= 1.5),
    Claim("and more than 10 times as fast as the authors' way", "edit", "rome, preset",
          "torch_ratio", lambda ratio: ratio > 10),
    Claim("after a thousand edits a batch takes no more than 1.3 times its time", "sequence",
          "sequence", "growth", lambda ratio: ratio <= 1.3),
    Claim("nor more memory", "sequence", "sequence", "memory_growth", lambda ratio: ratio <= 1.1),
    Claim("a server's other edits 20 times as fast as mlx-lm's other adapters", "serve",
          "switch, float32", "ratio", lambda ratio: ratio >= 20),
    Claim("and never an answer by other edits than asked for", "serve", "load", "wrong",
          lambda wrong: wrong == 0),
    *(Claim(f"a map of {kind} restorations 5 times as fast as cell by cell", "trace", kind,
            "direct_ratio", lambda ratio: ratio >= 5) for kind in ("hidden", "mlp", "attn")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(WORKS)} (default all)")
    parser.add_argument("--full", action="store_true", help="the direct way over everything")
    parser.add_argument("--repeats", type=int, default=5, help="of the fast way (default 5)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if unknown := set(args.what) - set(WORKS):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(WORKS)}")
    peak, works = peak_gflops(), {}
    for work in args.what or WORKS:
        works[work] = import_module(f"speed_{work}").rows(args.full, args.repeats)
        for row in works[work]:
            if "necessary_gflop" in row:
                row["share_of_peak"] = row["necessary_gflop"] / row["ours_s"] / peak
    claims = list(_judged(works))
    result = {"machine": f"{platform.system()} {platform.machine()}, mlx on "
                         f"{mx.default_device()}", "threads": os.cpu_count(),
              "peak_gflops": peak, "works": works, "claims": claims}
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    for claim in claims:
        print(f"{claim['verdict']:<12} {claim['words']}: {claim['figure']}")


def _judged(works: dict[str, list[dict]]):
    """Each claim about the works, its figure, and met, not met or not measured."""
    for claim in CLAIMS:
        for row in works.get(claim.work, ()):
            if row["name"] == claim.row:
                figure = row.get(claim.number)
                verdict = ("not measured" if figure is None else
                           "met" if claim.met(figure) else "NOT MET")
                yield {"words": claim.words, "verdict": verdict,
                       "figure": figure and round(figure, 2)}


if __name__ == "__main__":
    main()
