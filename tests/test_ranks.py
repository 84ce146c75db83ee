"""Runs in processes of their own: several ranks, killed ones, and what they leave behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from saved_model import save_tiny

import rome_mlx as rm
from rome_mlx.moments import store
from rome_mlx.moments.second_moment import SecondMoment
from rome_mlx.storage.ranks import Ranks

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = Path(sys.executable).parent / "mlx.launch"
needs_launcher = pytest.mark.skipif(not LAUNCHER.exists(), reason="mlx.launch is not installed")

#: stands in for `python -m rome_mlx`, and can save often, run slowly and die
SCRIPT = """
import os, sys, time
import rome_mlx
from rome_mlx.cli import main
from rome_mlx.moments import estimator
sys.stdin.close()
dying, seconds = os.environ.get("DYING_RANK"), float(os.environ.get("SECONDS_A_BATCH", 0))
estimator._CHECKPOINT_SECONDS = float(os.environ.get("CHECKPOINT_SECONDS", 40))
add, calls = estimator._add_rows, [0]
def slowly(*arguments):
    calls[0] += 1
    time.sleep(seconds)
    if dying and dying == os.environ.get("MLX_RANK") and calls[0] > 6:
        os.kill(os.getpid(), 9)
    add(*arguments)
estimator._add_rows = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A .txt of 30,000 letters, a token each."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(np.random.RandomState(0).choice(list("abcdefgh ,."), 30_000)))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def expected(saved, corpus):
    """Layers 1 and 3, 600 rows of 16, by one process in one go."""
    return rm.second_moments(*rm.load(saved), [1, 3], corpus, 9600, row_length=16)


def command(saved, corpus, output) -> list[str]:
    return [sys.executable, "-c", SCRIPT, "moments", "--model", str(saved), "--layers", "1,3",
            "--corpus", str(corpus), "--tokens", "9600", "--row-length", "16",
            "--output", str(output)]


def environment(**more) -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **more}


def launch(arguments, ranks: int = 2, **more) -> subprocess.CompletedProcess:
    """Run under mlx.launch, on ports that are free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] % 20_000 + 20_000
    return subprocess.run(
        [str(LAUNCHER), "-n", str(ranks), "--backend", "ring", "-p", str(port), "--", *arguments],
        env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=180, check=False)


def differences(output, expected) -> list[float]:
    """Largest relative difference of each layer's stored matrix and mean."""
    found = []
    for layer, moment in expected.items():
        stored, _ = store.read(store.layer_path(output, layer))
        assert stored.count == moment.count
        found += [np.abs(stored.value() - moment.value()).max() / np.abs(moment.value()).max(),
                  np.abs(stored.mean() - moment.mean()).max() / np.abs(moment.mean()).max()]
    return found


def only_one_file_a_layer(output) -> bool:
    return sorted(p.name for p in output.iterdir()) == ["layer-1.safetensors",
                                                        "layer-3.safetensors"]


@needs_launcher
def test_two_ranks_count_what_one_does(saved, corpus, expected, tmp_path):
    out = launch(command(saved, corpus, tmp_path / "moments"))
    assert out.stdout.count("layer 1: 9,600 tokens") == 1, out.stdout + out.stderr
    assert max(differences(tmp_path / "moments", expected)) < 1e-6
    assert only_one_file_a_layer(tmp_path / "moments")


@needs_launcher
@pytest.mark.parametrize("dying", ["0", "1"])
def test_a_rank_that_dies_ends_the_run_with_a_word_and_one_rank_goes_on(
        dying, saved, corpus, expected, tmp_path):
    output = tmp_path / "moments"
    out = launch(command(saved, corpus, output), DYING_RANK=dying, CHECKPOINT_SECONDS="-1",
                 SECONDS_A_BATCH="0.05")
    assert "another rank died" in out.stderr and f"{output}: start it again" in out.stderr
    assert "Traceback" not in out.stderr and "layer 1:" not in out.stdout
    before = store.read(store.layer_path(output, 1))[0].count
    assert 0 < before < 9600

    subprocess.run(command(saved, corpus, output), env=environment(), check=True,
                   stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert max(differences(output, expected)) < 1e-6 and only_one_file_a_layer(output)


@needs_launcher
def test_two_ranks_extend_what_one_began(saved, corpus, expected, tmp_path):
    output = tmp_path / "moments"
    rm.second_moments(*rm.load(saved), [1, 3], corpus, 1000, row_length=16, output=output)
    out = launch(command(saved, corpus, output))
    assert "layer 3: 9,600 tokens" in out.stdout, out.stderr
    assert max(differences(output, expected)) < 1e-6


@needs_launcher
def test_a_refusal_of_the_first_rank_ends_them_all(saved, corpus, tmp_path):
    output = tmp_path / "moments"
    output.mkdir()
    store.layer_path(output, 1).write_bytes(b"something else")
    out = launch(command(saved, corpus, output))
    assert re.search(r"layer-1\.safetensors is not a moments file", out.stderr)
    assert "Traceback" not in out.stderr and "layer 1:" not in out.stdout


def test_a_run_killed_in_the_middle_goes_on_and_equals_an_unbroken_one(
        saved, corpus, expected, tmp_path):
    output = tmp_path / "moments"
    run = subprocess.Popen(
        command(saved, corpus, output), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(CHECKPOINT_SECONDS="0.2", SECONDS_A_BATCH="0.1"))
    until = time.monotonic() + 60
    while not store.layer_path(output, 3).exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -9
    run.communicate()
    before = store.read(store.layer_path(output, 1))[0].count
    assert 0 < before < 9600
    (output / ".layer-3.safetensors-abcdef").write_text("killed while writing")

    again = subprocess.run(command(saved, corpus, output), env=environment(), check=True,
                           stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert "layer 1: 9,600 tokens" in again.stdout
    assert max(differences(output, expected)) < 1e-6
    assert only_one_file_a_layer(output)


def test_what_ranks_exchange_adds_up_in_one_process():
    """The exchange itself, with one rank: a share moves into the sums and leaves nothing."""
    ranks, keys = Ranks(""), np.random.RandomState(0).randn(100, 20)
    moment, share = SecondMoment(20), SecondMoment(20)
    share.add(mx.array(keys))
    ranks.gather(moment, share)
    assert moment.count == 100 and share.count == 0 and not share.total.any()
    exact = keys.T @ keys / 100
    assert np.abs(moment.value() - exact).max() < 1e-6
    ranks.spread(moment)
    assert moment.count == 100 and np.abs(moment.value() - exact).max() < 1e-6
