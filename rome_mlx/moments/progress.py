"""How far a count is, on stderr: a bar on a terminal, else a line every ten seconds."""

import sys
import time

from tqdm import tqdm

_SECONDS = 10.0


class Progress:
    """Tokens done of `total`, with the time left. shown: whether anything is said at all."""

    def __init__(self, total: int, done: int, shown: bool):
        self.total, self.done, self.begun = total, done, done
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

    def alive(self, doing: str = "") -> None:
        """Say how far it is, where nothing was said for ten seconds; doing: what is under way."""
        now = time.monotonic()
        if doing:
            self.bar.set_postfix_str(doing)
        if not self.lines or now - self.told < _SECONDS:
            return
        self.told, new = now, self.done - self.begun
        left = (self.total - self.done) / new * (now - self.started) if new else None
        print(f"rome-mlx: {self.done:,} of {self.total:,} tokens counted"
              f"{'' if left is None else f', about {_duration(left)} left'}"
              f"{f' ({doing})' if doing else ''}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
