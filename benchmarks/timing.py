"""What every speed benchmark shares: medians, the peak, and one fast BLAS for both ways."""

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mlx.core as mx  # noqa: E402

import rome_mlx as rm  # noqa: E402, F401


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
