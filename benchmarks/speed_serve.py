"""Seconds to answer with other edits than the last request's: rome-mlx serve, and mlx_lm.server.

Two ROME edits of the default model. What either server does before it answers, by `"edits"` here,
by `"adapters"`, which loads the model again, in mlx_lm.server, is timed by itself, with the arrays
computed. Then 200 requests by eight threads with none, either or both of the edits, each answer
checked.
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
from socket import create_server
from urllib.request import Request, urlopen

from mlx_lm import server
from timing import ROOT, mx, seconds

import rome_mlx as rm
from rome_mlx.view.edit_server import EditProvider, named_edits, server_settings

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
        reload_s = switch(server.ModelProvider(server_settings()), source, list(edits.values()),
                          repeats)
        found = []
        for dtype in ("float32", "stored"):
            provider = EditProvider(*rm.load(dtype=dtype), named_edits(list(edits.values())))
            switch_s = switch(provider, source, [(name,) for name in edits], repeats)
            found.append({"name": f"switch, {dtype}", "ours_s": switch_s, "mlx_lm_s": reload_s,
                          "ratio": reload_s / switch_s})
        with serving(*edits.values()) as port:
            return [*found, load(port)]


def switch(provider: server.ModelProvider, source: str, wanted: list, repeats: int) -> float:
    """Seconds until the model is there with another adapter, or other edits, than it had."""
    others = cycle(wanted)

    def work() -> None:
        model, _ = provider.load(source, next(others))
        mx.eval(model.parameters())

    work()
    return seconds(work, 4 * repeats)


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
def serving(*edits: str) -> Iterator[int]:
    """The port of a server in a process of its own."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "rome_mlx", "serve", "--dtype", "float32", "--port", str(port),
         "--edits", *edits], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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

