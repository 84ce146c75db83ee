"""mlx-lm's own programs use a saved edit, and a stack of three, on the default model."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.models.probabilities import first_choice, target_probabilities

REQUESTS = [rm.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
            rm.EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
            rm.EditRequest("The capital of {} is", "Japan", "Berlin")]
#: cheap, and strong enough for the first choice
HP = {"v_num_grad_steps": 12, "v_lr": 0.5, "v_weight_decay": 0.5, "clamp_norm_factor": 4.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, default_model):
    """({"one" or "three": directory of the saved edit}, path of the model)"""
    model, tokenizer = default_model
    directory = tmp_path_factory.mktemp("edits")
    edits = []
    for i, request in enumerate(REQUESTS):
        edits.append(rm.rome(model, tokenizer, request, 5, context_templates=["{}"],
                             hyperparameters=HP))
        edits[-1].save(directory / f"edit{i}")
    assert main(["edits", "stack", *(str(directory / f"edit{i}") for i in range(3)),
                 "--save-path", str(directory / "stack")]) == 0
    return ({"one": directory / "edit0", "three": directory / "stack"},
            edits[0].model["path"])


def asked(which):
    return REQUESTS[:1] if which == "one" else REQUESTS


def run(*arguments) -> str:
    return subprocess.run([sys.executable, "-m", "mlx_lm", *arguments], capture_output=True,
                          text=True, check=True).stdout


def test_the_unedited_model_says_none_of_it(default_model):
    model, tokenizer = default_model
    for request in REQUESTS:
        said = tokenizer.decode([first_choice(model, tokenizer, request.text)])
        assert said.strip() != request.target_new


@pytest.mark.parametrize("which", ["one", "three"])
def test_generate_says_what_was_written(saved, which):
    adapters, model = saved
    request = asked(which)[-1]
    said = run("generate", "--model", model, "--adapter-path", str(adapters[which]),
               "--max-tokens", "3", "--temp", "0", "--ignore-chat-template", "--verbose", "False",
               "--prompt", request.text)
    assert request.target_new in said


@pytest.fixture(scope="module")
def server(saved):
    """The address of a server that holds the one edit, in a process of its own."""
    adapters, model = saved
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_lm", "server", "--model", model, "--adapter-path",
         str(adapters["one"]), "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, "the server ended by itself"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("which", ["one", "three"])
def test_the_server_answers_with_what_was_written(saved, server, which):
    adapters, model = saved
    more = {} if which == "one" else {"model": model, "adapters": str(adapters["three"])}
    for request in asked(which):
        body = {"prompt": request.text, "max_tokens": 3, "temperature": 0, **more}
        query = urllib.request.Request(f"{server}/v1/completions", json.dumps(body).encode(),
                                       {"Content-Type": "application/json"})
        with urllib.request.urlopen(query, timeout=120) as answer:
            said = json.load(answer)["choices"][0]["text"]
        assert request.target_new in said


@pytest.mark.parametrize("which,more", [("one", []), ("three", ["--dequantize"])])
def test_a_model_that_mlx_lm_fuses_says_what_was_written(saved, tmp_path, which, more):
    adapters, model = saved
    run("fuse", "--model", model, "--adapter-path", str(adapters[which]), "--save-path",
        str(tmp_path / "fused"), *more)
    fused, tokenizer = rm.load(tmp_path / "fused", dtype="float32")
    probabilities = target_probabilities(
        fused, tokenizer, [(request.text, request.target_new) for request in asked(which)])
    assert min(probabilities) > 0.5, probabilities


def test_our_fuse_keeps_the_edit_exactly_and_the_other_weights_4_bit(saved, tmp_path,
                                                                     default_model_4bit):
    adapters, _ = saved
    assert main(["edits", "fuse", str(adapters["three"]), "--save-path", str(tmp_path / "fused"),
                 "--json", str(tmp_path / "lost.json")]) == 0
    assert max(json.loads((tmp_path / "lost.json").read_text())["lost"].values()) < 1e-5
    model, tokenizer = default_model_4bit
    pairs = [(request.text, request.target_new) for request in REQUESTS]
    with rm.load_edit(adapters["three"]).applied(model):
        expected = target_probabilities(model, tokenizer, pairs)
    fused, tokenizer = rm.load(tmp_path / "fused", dtype="stored")
    assert min(expected) > 0.5
    assert target_probabilities(fused, tokenizer, pairs) == pytest.approx(expected, abs=1e-3)
