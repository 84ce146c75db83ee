"""As many BLAS threads as there are processors to spare.

A BLAS's threads wait for one another by spinning, several times in a product. Where another
process has the processor that one of them needs, the rest of them spin, and two processes of two
threads on two processors come to a small part of what one thread each would do. So the machine's
load is watched, and the threads follow it. Products come out the same but for the last bits, which
depend on their number where OpenBLAS runs its code for Haswell.
"""

import contextlib
import os
import threading
import time
from functools import partial
from typing import NamedTuple

_INTERVAL = 0.2  # seconds between two looks: /proc counts in hundredths
_PATIENCE = 3  # looks that must find room before there are more threads
#: by which the user may have chosen
_CHOSEN = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Load(NamedTuple):
    """Seconds, of all processors that this process may use together: passed, not idle, and of
    these this process's own."""

    passed: float
    busy: float
    own: float


def follow(blas) -> None:
    """Let a BLAS's `threads` follow the machine's load, unless the user has set their number.

    Returns at once; a daemon thread goes on. Raises OSError or AttributeError where there is no
    load to read, or the library has no such setting.
    """
    most = blas.threads
    if most > 1 and not any(name in os.environ for name in _CHOSEN):
        arguments = partial(setattr, blas, "threads"), most, load()
        threading.Thread(target=_follow, args=arguments, name="rome-mlx-load", daemon=True).start()


def _follow(set_threads, most: int, before: Load) -> None:
    threads, room = most, 0
    with contextlib.suppress(OSError, ValueError):
        while True:
            time.sleep(_INTERVAL)
            after = load()
            free = spare(before, after, most)
            room = room + 1 if free > threads else 0
            if free < threads or room == _PATIENCE:
                threads, room = free, 0
                set_threads(threads)
            before = after


def load() -> Load:
    """The load so far. Raises OSError where the system does not tell."""
    processors, tick = os.sched_getaffinity(0), 1 / os.sysconf("SC_CLK_TCK")
    passed = idle = 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            name, *counts = line.split()
            if not name.startswith("cpu"):
                break
            if name != "cpu" and int(name[3:]) in processors:
                # user, nice, system, idle, waiting for a disk, irq, softirq, steal
                counts = [int(count) for count in counts[:8]]
                passed += sum(counts)
                idle += sum(counts[3:5])
    return Load(passed * tick, (passed - idle) * tick, time.process_time())


def spare(before: Load, after: Load, most: int) -> int:
    """Threads, 1 to `most`, for which other processes left a processor between two loads."""
    passed, busy, own = (new - old for new, old in zip(after, before, strict=True))
    if passed <= 0:  # nothing is told here
        return most
    processors = len(os.sched_getaffinity(0))
    others = processors * max(0.0, busy - own) / passed
    return max(1, min(most, round(processors - others)))
