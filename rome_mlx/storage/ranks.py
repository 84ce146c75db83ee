"""The processes of one run under `mlx.launch`, on one machine or many: outside a launcher, one."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np


def gathered(group, mine: dict[int, object]) -> dict[int, object]:
    """Every rank's values on every rank, sent as JSON bytes padded to the longest."""
    if group.size() == 1:
        return mine
    data = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = np.array(mx.distributed.all_gather(mx.array([len(data)]), stream=mx.cpu))
    padded = np.zeros((1, lengths.max()), np.uint8)
    padded[0, :len(data)] = data
    rows = np.array(mx.distributed.all_gather(mx.array(padded), stream=mx.cpu))
    return {int(i): value for row, length in zip(rows, lengths, strict=True)
            for i, value in json.loads(row[:length].tobytes()).items()}


class Ranks:
    """The processes of this run; outside a launcher, one.

    Each counts into sums of its own; `gather` adds them to everyone's. Sums are kept in float64
    and exchanged in float32: an error of 6e-8 of what is exchanged.
    kept: what is left of the sums when the run breaks off, for people.
    """

    def __init__(self, kept: str):
        group = mx.distributed.init()
        self.rank, self.size, self.kept = group.rank(), group.size(), kept

    def sum(self, values) -> np.ndarray:
        """The sum over ranks of an int32 or float32 array. Raises ConnectionError."""
        try:
            total = mx.distributed.all_sum(mx.array(values))
            mx.eval(total)
            return np.array(total)
        except RuntimeError as error:
            raise self._ended() from error

    def any(self, flag: bool) -> bool:
        """Whether it is so on the first rank."""
        return bool(self.sum(np.int32(flag and self.rank == 0)))

    def gather(self, moment, share) -> None:
        """Add every rank's share to the moment, and empty the share; both are a SecondMoment."""
        moment.count += int(self.sum(np.int32(share.count)))
        moment.keys += self.sum(share.keys.astype(np.float32))
        for stripe in share.stripes():
            moment.total[stripe] += self.sum(share.total[stripe].astype(np.float32))
        share.clear()

    def spread(self, moment) -> None:
        """Put the first rank's moment in place of everyone's, which are empty."""
        count, scale = int(self.sum(np.int32(moment.count))), 1
        if self.rank == 0:
            scale = max(1, count)
        moment.keys = self.sum((moment.keys / scale).astype(np.float32)) * np.float64(count)
        for stripe in moment.stripes():
            mean = self.sum((moment.total[stripe] / scale).astype(np.float32))
            moment.total[stripe] = mean * np.float64(count)
        moment.count = count

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let a rank that the launcher terminates, because another died, say so and end.

        A thread does it, since an exchange with a rank that is gone may never return.
        """
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        before = signal.set_wakeup_fd(writing)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGTERM, handler)
            os.close(writing)

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                print(f"rome-mlx: {self._ended()}", file=sys.stderr, flush=True)
                os._exit(1)
        os.close(reading)

    def _ended(self) -> ConnectionError:
        return ConnectionError(f"rank {self.rank} of {self.size}: the run has ended, because "
                               f"another rank died or it was told to stop; {self.kept}")
