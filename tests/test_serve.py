"""mlx-lm's server with edits: every answer is of the edits that its request names."""

import json
import queue
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from saved_model import save_tiny

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.models.codes import check_codes, digest_of, scales_of, steps_of
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import fingerprint
from rome_mlx.view import edit_server

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")
PATH = "model.layers.1.mlp.down_proj"
SETS = ([], ["a"], ["b"], ["a", "b"], ["b", "a"])
PROMPTS = ["ab cde lives in", "ab fgh", "once upon a time there was", "ab cde lives on"]
LENGTH = 8


def make_edit(model, seed: int, codes: bool = False) -> rm.Edit:
    """A random change of one weight, large enough to be heard."""
    random, module = np.random.RandomState(seed), Decoder(model).module(1, "down")
    delta = rm.LowRank(random.randn(64, 1), random.randn(1, 32))
    if codes:
        steps = random.randint(-4, 5, (32, 64)) * (random.rand(32, 64) < 0.3)
        delta = steps_of(steps, scales_of(check_codes(module, PATH)), digest_of(module))
    return rm.Edit("rome", [REQUEST], {PATH: delta}, [1], fingerprints={PATH: fingerprint(module)},
                   model={"path": "tiny"})


@pytest.fixture
def loaded(request, tmp_path):
    """(model, tokenizer, edits)"""
    kind = getattr(request, "param", "float32")
    model, tokenizer = rm.load(save_tiny(tmp_path / "tiny", intermediate_size=64), dtype="float32")
    if kind != "float32":
        nn.quantize(model, group_size=32, bits=4)
        mx.eval(model)  # here: the server runs in another thread
    return model, tokenizer, {name: make_edit(model, seed, kind == "in codes")
                              for seed, name in enumerate("ab")}


@contextmanager
def serving(loaded, monkeypatch):
    """The address of a server, which ends with the context."""
    listening = queue.Queue()
    monkeypatch.setattr(edit_server._Server, "server_activate", lambda server: (
        ThreadingHTTPServer.server_activate(server), listening.put(server)))
    thread = Thread(target=edit_server.serve, args=loaded, kwargs={"port": 0})
    thread.start()
    server = listening.get(timeout=30)
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def post(address: str, **body):
    return urlopen(Request(f"{address}/v1/completions", json.dumps(body).encode()), timeout=60)


def ask(address: str, prompt: str, edits: list[str] | None, **more) -> dict:
    with post(address, prompt=prompt, edits=edits, max_tokens=LENGTH, **more) as answer:
        return json.load(answer)


def text_of(answer: dict) -> str:
    return answer["choices"][0]["text"]


def greedy(model, prompt: str) -> str:
    """What the model says, without mlx-lm's generation and without a cache."""
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode(prompt)
    for _ in range(LENGTH):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax()))
    return tokenizer.decode(ids[-LENGTH:])


def answers(model, edits) -> dict:
    """{(prompt, edits): what the model with them says}"""
    found = {}
    for names in SETS:
        on = [edits[name] for name in edits if name in names]
        for edit in on:
            edit.apply(model)
        found |= {(prompt, tuple(names)): greedy(model, prompt) for prompt in PROMPTS}
        for edit in on:
            edit.revert(model)
    return found


def arrays(model) -> dict:
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


@pytest.mark.parametrize("loaded", ["float32", "beside 4 bits", "in codes"], indirect=True)
def test_many_requests_at_once_are_each_answered_by_their_own_edits(loaded, monkeypatch):
    model, _, edits = loaded
    expected, before = answers(model, edits), arrays(model)
    assert len(set(expected.values())) > 3 * len(PROMPTS)  # every edit is heard
    count = 40 if "scales" in Decoder(model).module(1, "down") else 200
    asked = [list(expected)[i] for i in np.random.RandomState(0).randint(0, len(expected), count)]
    with serving(loaded, monkeypatch) as address, ThreadPoolExecutor(8) as threads:
        said = list(threads.map(  # every third goes alone, not in a batch
            lambda i: text_of(ask(address, asked[i][0], list(asked[i][1]),
                                  seed=0 if i % 3 == 0 else None)), range(count)))
    assert said == [expected[one] for one in asked]
    after = arrays(model)
    assert set(after) == set(before)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_prompts_cache_is_of_its_edits(loaded, monkeypatch):
    expected = answers(loaded[0], loaded[2])
    with serving(loaded, monkeypatch) as address:
        for names, cached in (([], False), (["a"], False), ([], True), (["b"], False),
                              (["a"], True), (["b", "a"], False), (["a", "b"], True)):
            answer = ask(address, PROMPTS[2], names)
            assert text_of(answer) == expected[PROMPTS[2], tuple(names)]
            assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == cached


def test_answers_stream_and_the_models_are_listed(loaded, monkeypatch):
    expected = answers(loaded[0], loaded[2])
    with serving(loaded, monkeypatch) as address:
        with post(address, prompt=PROMPTS[0], edits=["b"], max_tokens=LENGTH, stream=True) as got:
            lines = [line[6:] for line in got.read().decode().splitlines()
                     if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        assert "".join(text_of(json.loads(line)) for line in lines) == expected[PROMPTS[0], ("b",)]
        with urlopen(f"{address}/v1/models") as got:
            listed, = json.load(got)["data"]
        assert listed["edits"] == ["a", "b"]
        assert text_of(ask(address, PROMPTS[0], None, model=listed["id"])) == expected[
            PROMPTS[0], ()]


def test_what_is_not_there_is_refused_by_name(loaded, monkeypatch):
    with serving(loaded, monkeypatch) as address:
        for body, words in (({"edits": ["c"]}, "there is no edit 'c'; there are 'a', 'b'"),
                            ({"edits": "a"}, "give a list of names; there are 'a', 'b'"),
                            ({"edits": [1]}, "[1]"), ({"adapters": "a"}, "'adapters'"),
                            ({"model": "other"}, "'other'"), ({"draft_model": "x"}, "draft")):
            with pytest.raises(HTTPError) as refused:
                post(address, prompt="ab", **body)
            assert refused.value.code == 400
            assert words in json.load(refused.value)["error"]


def test_an_edit_of_another_model_is_refused_before_anything_is_served(tmp_path, capsys):
    directories = [save_tiny(tmp_path / name, seed=i, intermediate_size=64)
                   for i, name in enumerate(("one", "other"))]
    make_edit(rm.load(directories[0], dtype="float32")[0], 0).save(tmp_path / "a")
    assert main(["serve", "--model", str(directories[1]), "--edits", str(tmp_path / "a")]) == 2
    assert "computed for" in capsys.readouterr().err


def test_two_edits_of_one_name_are_refused(tmp_path, capsys):
    model, _ = rm.load(save_tiny(tmp_path / "tiny", intermediate_size=64), dtype="float32")
    for place in ("one", "other"):
        make_edit(model, 0).save(tmp_path / place / "a")
    assert main(["serve", "--edits", str(tmp_path / "one/a"), str(tmp_path / "other/a/")]) == 2
    assert "two edits are called 'a'" in capsys.readouterr().err


def heed_ctrl_c() -> None:
    """Of a process whose parent was started in the background, which shells make deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_command_says_where_it_listens_and_ends_with_ctrl_c(tmp_path):
    directory = save_tiny(tmp_path / "tiny", intermediate_size=64)
    model, _ = rm.load(directory, dtype="float32")
    edit = make_edit(model, 0)
    edit.save(tmp_path / "a")
    process = subprocess.Popen(
        [sys.executable, "-m", "rome_mlx", "serve", "--model", str(directory), "--dtype", "float32",
         "--edits", str(tmp_path / "a"), "--port", "0"], stdout=subprocess.PIPE, text=True,
        preexec_fn=heed_ctrl_c)
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        with edit.applied(model):
            assert text_of(ask(address, PROMPTS[0], ["a"])) == greedy(model, PROMPTS[0])
        port = address.rpartition(":")[2]
        taken = subprocess.run(
            [sys.executable, "-m", "rome_mlx", "serve", "--model", str(directory), "--edits",
             str(tmp_path / "a"), "--port", port], capture_output=True, text=True, check=False)
        assert taken.returncode == 2 and f"port {port}" in taken.stderr.splitlines()[-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0 and not process.stdout.read()
    finally:
        process.kill()
