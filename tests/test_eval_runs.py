"""Runs in processes of their own: killed, shared out among ranks, and compared."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.view.compare import latex, markdown, read_run, terminal, to_json

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = Path(sys.executable).parent / "mlx.launch"

SCRIPT = """
import sys
import rome_mlx
import mlx.core as mx
import numpy as np
from fakes import FakeTokenizer
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.run import evaluate
from tiny import tiny_model
data, output, method, *numbers = sys.argv[1:]
model = tiny_model("llama")
keys = np.eye(model.layers[0].mlp.down_proj.weight.shape[1])
evaluate(model, FakeTokenizer(), read_counterfact(data), output=output,
         method=method, layer=1, moments=dict.fromkeys(range(4), keys),
         templates=["{}", "q. {}"], hyperparameters={"v_num_grad_steps": 4}, generations=2,
         **{name: int(n) for name, n in (pair.split("=") for pair in numbers)})
"""


def record(i):
    return {"case_id": i, "requested_rewrite": {
        "prompt": "{} is in", "subject": f"s{i}", "target_new": {"str": "xy"},
        "target_true": {"str": "z"}},
        "paraphrase_prompts": [f"a s{i} at"], "neighborhood_prompts": ["t is in", "u is in"],
        "generation_prompts": [f"s{i} was", "so it"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the script and 24 records."""
    path = tmp_path_factory.mktemp("runs")
    (path / "run.py").write_text(SCRIPT)
    (path / "data.json").write_text(json.dumps([record(i) for i in range(24)]))
    return path


def command(place, output, method="rome", *numbers):
    return [sys.executable, str(place / "run.py"), str(place / "data.json"),
            str(place / output), method, *numbers]


def environment(place):
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths),
            "ROME_MLX_CACHE": str(place / "cache")}


def run(arguments, place):
    return subprocess.run(arguments, check=True, capture_output=True, env=environment(place),
                          stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def unbroken(place):
    """{path within: bytes} of a run of 24 cases in one go."""
    run(command(place, "unbroken"), place)
    return contents(place / "unbroken")


def contents(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*") if path.is_file()}


def test_a_run_killed_five_times_ends_byte_for_byte_like_an_unbroken_one(place, unbroken):
    moments = random.Random(0)
    output = place / "broken"
    for kills in range(5):
        process = subprocess.Popen(command(place, "broken"), env=environment(place),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(output.glob("case_*.json"))) < 3 * kills and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in output.glob("case_*.json")}
    assert 12 <= len(done) < 24
    run(command(place, "broken"), place)
    assert contents(output) == unbroken
    assert len(list((place / "unbroken").iterdir())) == 24 + 3
    assert len(list((place / "unbroken/edits").iterdir())) == 24
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())


@pytest.mark.skipif(not LAUNCHER.exists(), reason="mlx.launch is not installed")
@pytest.mark.parametrize("numbers", [(), ("sequential=4",)])
def test_two_ranks_and_one_give_the_same_files(place, unbroken, numbers):
    if numbers:
        run(command(place, "one", "rome", *numbers), place)
        unbroken = contents(place / "one")
    output = f"two{len(numbers)}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] % 20_000 + 20_000
    run([str(LAUNCHER), "-n", "2", "--backend", "ring", "-p", str(port), "--",
         *command(place, output, "rome", *numbers)], place)
    assert contents(place / output) == unbroken


def test_batches_and_sequences_measure_every_case_under_all_the_edits(place):
    for output, method, numbers in (("batch", "memit", ["batch=6"]),
                                    ("sequence", "memit", ["sequential=6", "batch=3"])):
        run(command(place, output, method, *numbers), place)
        case = json.loads((place / output / "case_7.json").read_text())
        assert case["group"] == list(range(6, 12))
    drifts = {json.loads((place / "batch" / f"case_{i}.json").read_text())["post"]["kl_drift"]
              for i in range(6, 12)}
    assert len(drifts) == 1 and drifts.pop() > 0


def test_the_unedited_model_is_measured_once_for_all_runs(place, unbroken):
    cached = sorted((place / "cache" / "kept").rglob("*.json"))
    # whose they are, scores, texts of two cases, and states on neutral text
    assert len(cached) == 1 + 24 + 2 + 1
    run(command(place, "again", "r-rome"), place)
    assert sorted((place / "cache" / "kept").rglob("*.json")) == cached
    for i in (0, 23):
        one, other = (json.loads((place / name / f"case_{i}.json").read_text())
                      for name in ("unbroken", "again"))
        assert one["pre"] == other["pre"] and one["post"] != other["post"]


@pytest.fixture(scope="module")
def runs(place, unbroken):
    """A run of 24 cases and another of the same."""
    run(command(place, "other", "p-rome"), place)
    return [read_run(place / "unbroken"), read_run(place / "other")]


def test_runs_are_compared_in_every_form(place, unbroken, runs, tmp_path, capsys):
    summary = json.loads(unbroken["summary.json"])
    assert runs[0].summary["score"] == summary["score"] and summary["groups"] == 24
    lines = terminal(runs).splitlines()
    assert all(len(line) <= 80 for line in lines) and "minus unbroken" in lines[0]
    assert [line.split()[0] for line in lines[1:5]] == ["S", "unedited", "unbroken", "other"]
    values, differences, _ = markdown(runs).split("\n\n")
    (head, *table), changes = values.splitlines(), differences.splitlines()
    assert len({line.count("|") for line in [head, *table]}) == 1
    assert head == "|  | unedited | unbroken | other |"
    assert changes[0] == "| minus unbroken | unedited | other |"
    entropy, = (line for line in table if line.startswith("| GE |"))
    assert entropy.count("(n 2)") == 3  # of free text there are two cases
    assert latex(runs).count(r"\\") == len(table) + len(changes) - 1
    files = [tmp_path / name for name in ("t.md", "t.tex", "t.png", "t.json")]
    assert main(["eval", "compare", str(place / "unbroken"), str(place / "other"), "--markdown",
                 str(files[0]), "--latex", str(files[1]), "--plot", str(files[2]), "--json",
                 str(files[3])]) == 0
    assert capsys.readouterr().out == terminal(runs) + "\n"
    assert all(file.stat().st_size > 100 for file in files)
    assert not any("±" in file.read_text() or r"\pm" in file.read_text() for file in files[:2])
    assert main(["eval", "compare", str(tmp_path)]) == 2


def test_the_results_page_is_made_of_run_directories(place, runs, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    run([sys.executable, str(ROOT / "benchmarks/results.py"), str(place / "unbroken"),
         str(place / "other"), "--page", str(page)], place)
    text = page.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    values, differences, _ = markdown(runs).split("\n\n")
    written = text.partition("<details")  # the differences are folded
    for part, table in ((written[0], values), (written[2], differences)):
        for line in table.split("\n")[3:]:
            label, cells = line[2:].split(" | ", 1)
            assert re.search(rf"^\| {label}\b[^|]*\| {re.escape(cells)}$", part, re.M), line
    assert "±" not in text
    assert "| unbroken | rome | 1 |" in text and "| other | p-rome | 1 |" in text


def test_differences_are_of_the_same_cases_and_say_to_which_run(runs, place, unbroken, tmp_path):
    first, other = to_json(runs)
    assert first["differences"] is None and other["differences"]["to"] == "unbroken"
    name = "rewrite_magnitude"
    change = other["differences"][name]
    assert change["mean"] == pytest.approx(other[name]["mean"] - first[name]["mean"])
    assert change["n"] == 24 and change["ci95"][0] < change["mean"] < change["ci95"][1]

    part = tmp_path / "part"
    part.mkdir()
    for file in ("run.json", *(f"case_{i}.json" for i in range(12))):
        (part / file).write_bytes((place / "other" / file).read_bytes())
    elsewhere = json.loads((part / "case_0.json").read_text())
    elsewhere["request"]["subject"] = "of other data"
    (part / "case_0.json").write_text(json.dumps(elsewhere))
    some = [runs[0], read_run(part)]
    assert to_json(some)[1]["differences"][name]["n"] == 11
    assert "unedited" not in terminal(some) and " n 11" in terminal(some)
    assert all(len(line) <= 80 for line in terminal(some).splitlines())


def test_cases_that_share_one_edited_model_have_no_interval(place, capsys):
    output = place / "one_group"
    run(command(place, "one_group", "memit", "batch=24"), place)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["groups"] == 1 and summary["kl_drift"]["ci95"] is None
    assert summary["unedited"]["rewrite_success"]["ci95"] is not None
    assert main(["eval", "compare", str(output)]) == 0
    assert "[none]: one case, or one edited model, has no interval" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_is_read(runs, place, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for file in (place / "other").glob("*.json"):
        if file.name != "summary.json":
            (old / file.name).write_bytes(file.read_bytes())
    case = json.loads((old / "case_0.json").read_text())
    case["post"]["ngram_entropy"] -= 3  # by lines, not by sentences
    (old / "case_0.json").write_text(json.dumps(case))
    assert read_run(old).summary == runs[1].summary  # GE is taken from the texts again


def test_an_unfinished_run_is_compared_over_what_it_has(place, unbroken, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    for name in ("run.json", "case_3.json", "case_5.json"):
        (part / name).write_bytes(unbroken[name])
    assert read_run(part).summary["cases"] == 2
    (part / "case_5.json").write_text("{}")
    with pytest.raises(rm.RomeError, match="damaged"):
        read_run(part)
