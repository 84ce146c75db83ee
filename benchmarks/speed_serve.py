"""Seconds to answer with other edits than the last request's: rome-mlx serve, and mlx_lm.server.

Two ROME edits of the default model. A request of one token, whose prompt's cache is there, is timed
with the last request's edits and with others: the difference is the switch, by `"edits"` here, by
`"adapters"`, which loads the model again, in mlx_lm.server. Then 200 requests by eight threads with
none, either or both of the edits, each answer checked.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from socket import create_server
from urllib.request import Request, urlopen

from timing import seconds

import rome_mlx as rm

FACT = "{} is located in the city of"
WRITTEN = {"eiffel": ("The Eiffel Tower", "Rome"), "louvre": ("The Louvre", "Berlin")}
SETS = ([], ["eiffel"], ["louvre"], ["eiffel", "louvre"])
REQUESTS, THREADS = 200, 8


def rows(full: bool, repeats: int) -> list[dict]:
    """A row for the float32 model, one for the 4-bit one, and one for the load; full changes
    nothing."""
    with tempfile.TemporaryDirectory() as place:
        edits = {name: f"{place}/{name}" for name in WRITTEN}
        model, tokenizer = rm.load(dtype="float32")
        for name, (subject, target) in WRITTEN.items():
            rm.rome(model, tokenizer, rm.EditRequest(FACT, subject, target), 5).save(edits[name])
        source = rm.load_edit(edits["eiffel"]).model["path"]
        found = []
        with serving("mlx_lm", "server", "--model", source) as port:
            reload_s = switch(port, [{"model": source, "adapters": edits[name]} for name in edits],
                              repeats)
        for dtype in ("float32", "stored"):
            with serving("rome_mlx", "serve", "--dtype", dtype, "--edits", *edits.values()) as port:
                switch_s = switch(port, [{"edits": [name]} for name in edits], repeats)
                found.append({"name": f"switch, {dtype}", "ours_s": switch_s,
                              "mlx_lm_s": reload_s, "ratio": reload_s / switch_s})
                if dtype == "float32":
                    found.append(load(port))
    return found


def switch(port: int, wanted: list[dict], repeats: int) -> float:
    """Seconds that a request takes longer where it wants something else than the last one."""
    for one in wanted:
        ask(port, "The Louvre", one)
    others = cycle(wanted)
    times = [seconds(lambda: ask(port, "The Louvre", next(others)), 4 * repeats),
             seconds(lambda: ask(port, "The Louvre", wanted[-1]), 4 * repeats)]
    print(f"another {times[0]:.3f} s, the same {times[1]:.3f} s", file=sys.stderr)
    return times[0] - times[1]


def load(port: int) -> dict:
    """Many requests at once, which ask for both facts with all sets of edits."""
    def right(number: int) -> bool:
        edits = SETS[number % len(SETS)]
        name = list(WRITTEN)[number // len(SETS) % 2]
        subject, target = WRITTEN[name]
        said = ask(port, subject, {"edits": edits})["choices"][0]["text"]
        return said.strip() == (target if name in edits else "Paris")

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(right, range(REQUESTS)))
    return {"name": "load", "ours_s": (time.perf_counter() - began) / REQUESTS,
            "requests": REQUESTS, "wrong": answers.count(False)}


def ask(port: int, subject: str, wanted: dict) -> dict:
    """The answer to one request for one token."""
    body = {"prompt": FACT.format(subject), "max_tokens": 1, **wanted}
    with urlopen(Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                         {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[int]:
    """A server in a process of its own, at the port that is given."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", module, *arguments, "--port", str(port)],
                               cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()

