"""How fast is it? One machine, one run, medians.

  python benchmarks/speed.py trace --json speed.json

Each kind of work is timed beside the direct way in MLX with the same BLAS, and beside PyTorch
where it is installed; the necessary arithmetic is counted, and compared with what a large float32
matrix product reaches here. speed_WORK.py says what is timed.
"""

import argparse
import json
import os
import platform
from importlib import import_module
from pathlib import Path

from timing import mx, peak_gflops

WORKS = ("eval", "trace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WORKS)
    parser.add_argument("--full", action="store_true", help="the direct way over everything")
    parser.add_argument("--repeats", type=int, default=5, help="of the fast way (default 5)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    peak = peak_gflops()
    rows = import_module(f"speed_{args.what}").rows(args.full, args.repeats)
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
