"""How far a count is, on stderr: a bar on a terminal, else a line every ten seconds."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

_SECONDS = 10.0
_SAMPLING = 0.9  # of the time of a token that is sampled first and counted then


class Progress:
    """Tokens done of `total`, with the time left. shown: whether stderr says anything at all;
    report: called with the share that is done and the seconds left, None before anything is."""

    def __init__(self, total: int, done: int, shown: bool,
                 report: Callable[[float, float | None], None] | None = None):
        self.report = report
        self.total, self.done, self.begun = total, done, done
        self.sampled = 0  # tokens, since the beginning
        self.started = self.told = time.monotonic()
        self.lines = shown and not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="token", unit_scale=True,
                        disable=not shown or self.lines, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def add(self, tokens: int) -> None:
        self.done += tokens
        self.bar.update(tokens)
        self.alive()

    def sampling(self, tokens: int) -> None:
        """Of the model's own text so many tokens are made, of which some are counted."""
        self.sampled = tokens
        self.bar.set_postfix_str(f"{self.begun + tokens:,} sampled")
        self.alive()

    def alive(self) -> None:
        """Say how far it is, where nothing was said for ten seconds."""
        now = time.monotonic()
        if self.report is not None:
            share = (self.begun + self._work()) / self.total
            self.report(share, self.left(now - self.started))
        if not self.lines or now - self.told < _SECONDS:
            return
        self.told, left = now, self.left(now - self.started)
        print(f"rome-mlx: {self.done:,} of {self.total:,} tokens counted"
              f"{f', {self.begun + self.sampled:,} sampled' if self.sampled else ''}"
              f"{'' if left is None else f', about {_duration(left)} left'}",
              file=sys.stderr, flush=True)

    def left(self, seconds: float) -> float | None:
        """Seconds to go after so many, None where nothing is done yet."""
        work = self._work()
        return (self.total - self.begun - work) / work * seconds if work else None

    def _work(self) -> float:
        """What was done since the beginning, in tokens counted."""
        new, share = self.done - self.begun, _SAMPLING if self.sampled else 0.0
        sampled = min(self.sampled, self.total - self.begun)  # few of them may be counted
        return share * max(sampled, new) + (1 - share) * new


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
