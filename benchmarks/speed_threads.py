"""GFLOP/s of products of 77 rows, as an edit's are: one process, and two at once.

In the second half of the time, by when the threads have followed the load.
"""

import subprocess
import sys

_SECONDS, _SIZE = 6, (77, 576, 1536)
_WORK = f"""
import {{first}}, {{second}}
import time
import mlx.core as mx
rows, inner, columns = {_SIZE}
a, b = mx.random.normal((rows, inner)), mx.random.normal((columns, inner))
mx.eval(a, b)
start, count = time.perf_counter(), 0
while (passed := time.perf_counter() - start) < {_SECONDS}:
    mx.eval([a @ b.T for _ in range(20)])
    count += 20 * (passed > {_SECONDS} / 2)
print(2 * rows * inner * columns * count / ({_SECONDS} / 2) / 1e9)
"""


def rows(full: bool, repeats: int) -> list[dict]:
    """Alone, alone with mlx imported first, and two processes."""
    alone, late = _run("rome_mlx", "mlx.core")[0], _run("mlx.core", "rome_mlx")[0]
    both = _run("rome_mlx", "mlx.core", 2)
    print(f"alone {alone:.0f}, mlx imported first {late:.0f}, two at once "
          f"{' and '.join(f'{x:.0f}' for x in both)} GFLOP/s", file=sys.stderr)
    return [{"name": "threads", "alone_gflops": alone, "mlx_first_gflops": late,
             "two_gflops": both, "of_half": min(both) / (alone / 2),
             "mlx_first_share": late / alone}]


def _run(first: str, second: str, processes: int = 1) -> list[float]:
    code = _WORK.format(first=first, second=second)
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
               for _ in range(processes)]
    return [float(process.communicate()[0]) for process in running]
