"""`rome-mlx locate` as people run it: killed, started again, on two ranks."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

ROOT = Path(__file__).parent.parent
FACTS = [{"prompt": "{} is " + "in the " * (i % 4 + 1) + "city of", "subject": f"Place {i}"}
         for i in range(40)] + [{"prompt": "{} is in", "subject": "Nowhere", "attribute": "none"}]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A tiny model's directory and a file of facts."""
    path = tmp_path_factory.mktemp("locate")
    model = tiny_model("llama")
    (path / "model").mkdir()
    model.save_weights(str(path / "model/model.safetensors"))
    (path / "model/config.json").write_text(json.dumps(asdict(model.args)))
    FakeTokenizer().save_pretrained(path / "model")
    (path / "facts.json").write_text(json.dumps(FACTS))
    return path


def command(here, output: str) -> list[str]:
    return [sys.executable, "-m", "rome_mlx", "locate", "--model", str(here / "model"),
            "--facts", str(here / "facts.json"), "--samples", "3", "--window", "2", "--noise",
            "0.5", "--kinds", "hidden,mlp", "--output", str(here / output),
            "--json", str(here / f"{output}.json")]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own: a profile is kept there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROME_MLX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


def run(words) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def unbroken(here) -> dict:
    run(command(here, "unbroken"))
    return json.loads((here / "unbroken.json").read_text())


def facts_done(directory: Path) -> int:
    return len(list(directory.glob("fact_*.json")))


def test_the_run_uses_the_facts_that_the_model_knows(unbroken):
    assert unbroken["facts_used"] == 40
    assert [skipped["subject"] for skipped in unbroken["facts_skipped"]] == ["Nowhere"]


def test_a_run_killed_at_any_moment_goes_on_to_the_same_numbers(here, unbroken):
    for least in (1, 15):
        started = subprocess.Popen(command(here, "killed"), cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while facts_done(here / "killed") < least and started.poll() is None:
            time.sleep(0.005)
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
    assert 15 <= facts_done(here / "killed") < len(FACTS)
    assert not (here / "killed.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (here / "killed").glob("fact_*.json")}
    run(command(here, "killed"))
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert json.loads((here / "killed.json").read_text()) == unbroken


def test_two_ranks_write_what_one_writes(here, unbroken):
    launch = Path(sys.executable).with_name("mlx.launch")
    run([launch, "-n", "2", "--backend", "ring", "--", *command(here, "ranks")])
    assert facts_done(here / "ranks") == len(FACTS)
    assert json.loads((here / "ranks.json").read_text()) == unbroken


def test_a_profile_that_locate_made_is_read_by_the_next_command(here, unbroken):
    """It was written and never read: the layer came from the depth."""
    assert unbroken["layer_choice"]["how"] == ("profile" if unbroken["clear"] else "depth")
    subprocess.run([sys.executable, "-m", "rome_mlx", "doctor", "--model", str(here / "model"),
                    "--json", str(here / "doctor.json")], cwd=ROOT, timeout=300)
    said = json.loads((here / "doctor.json").read_text())["layers"]
    assert "averaged over 40 facts" in said[0]
    assert f"Layer to edit: {unbroken['layer_choice']['layer']}," in said[1]
