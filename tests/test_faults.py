"""Real faults: a full disk, directories that cannot be written, processes killed at any moment or
running side by side, damaged caches, links that lead elsewhere, models that bring code."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from gguf_files import write_model
from mlx_lm.utils import save
from tiny import _COMMON, tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.models.loading import import_gguf
from rome_mlx.moments import store
from rome_mlx.storage.files import whole_directory, write_json

ROOT = Path(__file__).resolve().parents[1]
REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """The directory of a tiny model that the command line loads."""
    path = tmp_path_factory.mktemp("model") / "model"
    save(path, str(path.parent), tiny_model("llama"), FakeTokenizer(),
         {**_COMMON, "model_type": "llama"})
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True,
            check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def closed_directory(tmp_path):
    """A directory that this process cannot write."""
    path = tmp_path / "closed"
    path.mkdir()
    if os.geteuid():
        path.chmod(0o555)
        yield path
        path.chmod(0o755)
        return
    if shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", path], capture_output=True,
            check=False).returncode:
        pytest.skip("cannot make a directory that root cannot write")
    yield path
    subprocess.run(["umount", path], check=True)


def make_edit(rank=1):
    random_state = np.random.RandomState(0)
    delta = rm.LowRank(random_state.randn(48, rank), random_state.randn(rank, 32))
    path = "model.layers.1.mlp.down_proj"
    return rm.Edit("rome", [REQUEST], {path: delta}, [1], fingerprints={path: [32.0, 48.0, 1.0]},
                   model={"path": "x", "type": "llama", "dtype": "float32"})


def moments_of(dim):
    moments = rm.Moments({1: rm.SecondMoment(dim)}, {1: {
        "layer": 1, "dim": dim, "corpus": "c", "fingerprint": [1.0, 1.0, 1.0]}})
    moments[1].add(mx.random.normal((64, dim)))
    return moments


def writers(directory: Path, gguf: Path):
    """What writes files: name -> (act, what there is afterwards where it can be written)."""
    big = {"a": "x" * 100_000}
    return {
        "results": lambda: write_json(directory / "case.json", big),
        "moments": lambda: store.write_all(directory, moments_of(200)),
        "edit": lambda: make_edit(rank=32).save(directory / "edit"),
        "gguf": lambda: import_gguf(gguf, directory / "model"),
        "fused": lambda: _write_model(directory / "fused"),
    }


def _write_model(path):
    with whole_directory(path) as inside:
        mx.save_safetensors(str(inside / "model.safetensors"), {"a": mx.zeros((200, 200))})


WRITERS = ("results", "moments", "edit", "gguf", "fused")


@pytest.mark.parametrize(("name", "ballast"), [
    *((name, 8_000) for name in WRITERS if name != "edit"), ("edit", 52_000),
    ("edit", 64_000), ("gguf", 64_000)])  # the first file does not fit
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
        name, ballast, small_disk, tmp_path):
    gguf = write_model(tmp_path / "m.gguf", "llama", tiny_model("llama", vocab_size=320))
    (small_disk / "ballast").write_bytes(b"0" * ballast)
    before = sorted(small_disk.iterdir())
    with pytest.raises(rm.RomeError, match=r"free some space"):
        writers(small_disk, gguf)[name]()
    assert sorted(small_disk.iterdir()) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_directory_that_cannot_be_written_is_refused(name, closed_directory, tmp_path):
    gguf = write_model(tmp_path / "m.gguf", "llama", tiny_model("llama", vocab_size=320))
    with pytest.raises(rm.RomeError, match="cannot write"):
        writers(closed_directory, gguf)[name]()
    assert not list(closed_directory.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_the_work(closed_directory, capsys):
    edit = ["edit", "--prompt", "{} is in", "--subject", "Paris", "--target-new", "x", "--model",
            "nowhere"]
    for flag in ("--save-path", "--report", "--json"):
        assert main([*edit, flag, str(closed_directory / "out")]) == 2
        said, = capsys.readouterr().err.splitlines()
        assert "cannot write" in said and "choose another" in said


def test_all_files_of_a_directory_can_be_read_by_others(tmp_path):
    make_edit().save(tmp_path / "edit")
    assert all(f.stat().st_mode & 0o044 == 0o044 for f in (tmp_path / "edit").iterdir())


def commands(model, directory, text):
    """The long commands on a tiny model: name -> arguments, all of them resuming in `directory`."""
    facts, cases = text.parent / "facts.json", text.parent / "cases.json"
    facts.write_text(json.dumps([{"prompt": "{} is in", "subject": f"ab{i}"} for i in range(12)]))
    cases.write_text(json.dumps([{
        "case_id": i, "paraphrase_prompts": [f"a s{i} at"], "neighborhood_prompts": ["t is in"],
        "requested_rewrite": {"prompt": "{} is in", "subject": f"s{i}", "relation_id": "P1",
                              "target_new": {"str": "xy"}, "target_true": {"str": "z"}}}
        for i in range(6)]))
    common = ["--model", str(model), "--output", str(directory)]
    return {
        "moments": ["moments", "--layers", "1,2", "--corpus", str(text), "--tokens", "20000",
                    "--row-length", "64", *common],
        "locate": ["locate", "--facts", str(facts), "--samples", "2", "--window", "2", *common],
        "eval": ["eval", "counterfact", "--data", str(cases), "--method", "ft", "--layer", "1",
                 *common],
    }


def start(arguments, cache):
    return subprocess.Popen(
        [sys.executable, "-m", "rome_mlx", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "ROME_MLX_CACHE": str(cache), "OPENBLAS_NUM_THREADS": "1"})


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*")
            if p.is_file() and not p.name.startswith(".")}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over a lazy dog by the river. " * 400)
    return path


@pytest.mark.parametrize("name", ["moments", "locate", "eval"])
def test_a_command_killed_at_any_moment_goes_on_and_ends_like_an_unbroken_one(
        name, saved_model, text, tmp_path):
    moment, cache = random.Random(name), tmp_path / "cache"
    whole = start(commands(saved_model, tmp_path / "whole", text)[name], cache)
    began = time.monotonic()
    assert whole.wait(timeout=300) == 0, whole.stderr.read()
    took = time.monotonic() - began
    arguments = commands(saved_model, tmp_path / "broken", text)[name]
    for _ in range(2):
        process = start(arguments, cache)
        time.sleep(took * moment.uniform(0.6, 0.95))
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(arguments, cache)
    assert process.wait(timeout=300) == 0, process.stderr.read()
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "broken")
    assert expected.keys() == found.keys()
    if name != "moments":  # whose sums are added up in another order, and whose files are timeless
        assert expected == found
    else:
        for layer in (1, 2):
            one, other = (store.read(store.layer_path(tmp_path / d, layer))[0]
                          for d in ("whole", "broken"))
            assert one.count == other.count
            np.testing.assert_allclose(other.value(), one.value(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["moments", "eval"])
def test_two_processes_in_one_directory_end_with_whole_files(name, saved_model, text, tmp_path):
    alone = start(commands(saved_model, tmp_path / "alone", text)[name], tmp_path / "cache0")
    arguments = commands(saved_model, tmp_path / "both", text)[name]
    processes = [start(arguments, tmp_path / "cache") for _ in range(2)]
    for process in (alone, *processes):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    expected, found = contents(tmp_path / "alone"), contents(tmp_path / "both")
    assert expected.keys() == found.keys()
    assert not list((tmp_path / "both").rglob(".*"))
    if name == "eval":
        assert expected == found


def test_interrupting_is_one_line_and_leaves_no_temporary_file(saved_model, text, tmp_path):
    arguments = commands(saved_model, tmp_path / "run", text)["eval"]
    process = start(arguments, tmp_path / "cache")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/case_*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    if process.returncode != 0:  # it was not through already
        assert process.returncode == 130
        assert said.strip().splitlines() == ["rome-mlx: stopped; what was saved before is whole"]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_damaged_model_in_the_cache_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    gguf = write_model(tmp_path / "m.gguf", "llama", tiny_model("llama", vocab_size=320))
    rm.load(gguf)
    converted, = (tmp_path / "cache/models").iterdir()
    weights = converted / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(rm.RomeError, match="remove it and run again"):
        rm.load(gguf)
    (converted / "config.json").write_text("{")
    with pytest.raises(rm.RomeError, match="remove it and run again"):
        rm.load(gguf)
    shutil.rmtree(converted)
    rm.load(gguf)


def test_damaged_moments_in_the_cache_are_passed_over(saved_model, text, tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    model, tokenizer = rm.load(saved_model)
    directory = tmp_path / "cache/moments/mine"
    rm.second_moments(model, tokenizer, [1], text, 2000, row_length=64, output=directory)
    options = {"hyperparameters": {"v_num_grad_steps": 2}, "context_templates": ["{}"]}
    rm.rome(model, tokenizer, REQUEST, layer=1, **options)
    path = store.layer_path(directory, 1)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(rm.RomeError, match="rome-mlx moments"):
        rm.rome(model, tokenizer, REQUEST, layer=1, **options)


def test_a_link_in_a_run_directory_is_replaced_and_not_followed(saved_model, text, tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    run = tmp_path / "run"
    arguments = commands(saved_model, run, text)["eval"]
    assert main([*arguments, "--limit", "1"]) == 0
    for name in ("summary.json", "case_1.json"):
        (run / name).unlink(missing_ok=True)
    (run / "summary.json").symlink_to(outside)
    (run / "case_1.json").symlink_to(tmp_path / "nowhere.json")
    assert main([*arguments, "--limit", "2"]) == 0
    assert outside.read_text() == "{}" and not (tmp_path / "nowhere.json").exists()
    assert not (run / "summary.json").is_symlink()


def test_a_models_own_code_runs_only_when_asked(saved_model, tmp_path):
    path, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(saved_model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_file": "mine.py"}))
    (path / "mine.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom mlx_lm.models.llama import *\n")
    with pytest.raises(rm.RomeError, match="trust_remote_code"):
        rm.load(path)
    assert not marker.exists()
    rm.load(path, trust_remote_code=True)
    assert marker.exists()
