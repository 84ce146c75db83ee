"""One thread for all that uses the model: MLX's arrays belong to the thread that made them."""

import asyncio
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ...errors import RomeError


class Cancelled(Exception):
    """Nobody listens to this job any more."""


class Worker:
    """Runs jobs step by step: between two steps of one, others' steps have their turn."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def call(self, function: Callable, *args):
        """What a function returns or raises, run in the thread."""
        return self._thread.submit(function, *args).result()

    async def later(self, function: Callable, *args):
        """`call`, for one who must not wait in place."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def events(self, job: Callable[[Callable], Iterator[None]]) -> AsyncIterator[dict]:
        """What job(tell) tells while it goes on, errors included, as {"event": "error"}.

        When the listener leaves, the job ends at its next step or the next thing that it tells.
        """
        loop, left = asyncio.get_running_loop(), threading.Event()
        told: asyncio.Queue = asyncio.Queue()

        def tell(event: dict) -> None:
            if left.is_set():
                raise Cancelled
            loop.call_soon_threadsafe(told.put_nowait, event)

        steps = job(tell)
        try:
            going = True
            while going:
                step = loop.run_in_executor(self._thread, _step, steps, tell)
                step.add_done_callback(lambda _: told.put_nowait(None))
                while (event := await told.get()) is not None:
                    yield event
                going = step.result()
        finally:
            left.set()
            self._thread.submit(steps.close)

    def stop(self) -> None:
        """Wait for the step that is under way; the others are not begun."""
        self._thread.shutdown(cancel_futures=True)


def _step(steps: Iterator[None], tell: Callable[[dict], None]) -> bool:
    """Whether the job goes on after its next step."""
    try:
        next(steps)
        return True
    except (StopIteration, Cancelled):
        return False
    except RomeError as error:
        message = str(error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        message = f"this failed ({type(error).__name__}: {error}); the terminal says more"
    with suppress(Cancelled):
        tell({"event": "error", "message": message})
    return False
