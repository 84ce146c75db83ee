"""rome-mlx edit --batch, stopped and gone on, and edits withdraw, on a tiny model."""

import json

import pytest
from samples import arrays, needs_exact
from saved_model import save_tiny

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing import sequence as module

RECORDS = [{"prompt": "{} lives in", "subject": f"ab {i}", "target_new": "xy",
            "ground_truth": "z"} for i in range(4)] + [
    {"prompt": f"The home of q {i} is", "subject": f"q {i}", "target_new": "r"} for i in range(2)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    model = save_tiny(tmp_path / "model")
    (tmp_path / "requests.json").write_text(json.dumps(RECORDS))
    (tmp_path / "hp.json").write_text(json.dumps({"v_num_grad_steps": 2, "layers": [0, 1]}))
    (tmp_path / "text.txt").write_text("a cat sat on the mat and the dog did not " * 200)

    def command(*more, directory="edits"):
        return main(["edit", "--model", str(model), "--requests", str(tmp_path / "requests.json"),
                     "--batch", "2", "--corpus", str(tmp_path / "text.txt"),
                     "--hyperparameters", str(tmp_path / "hp.json"),
                     "--save-path", str(tmp_path / directory), *more])

    return tmp_path, command


@needs_exact
def test_a_sequence_is_written_saved_and_gone_on_with(place, capsys, monkeypatch):
    path, command = place
    assert command("--json", str(path / "out.json"), directory="whole") == 0
    told = capsys.readouterr().out
    assert "6 requests by memit, 2 a batch, at layers 0, 1\n  (0.12 for each" in told
    assert "     6  the batch:" in told and all(
        len(line) <= 80 for line in told.splitlines() if str(path) not in line)
    out = json.loads((path / "out.json").read_text())
    assert len(out["edits"]) == 3 and out["health"]["edits"] == 6

    efficacy, calls = module.efficacy, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return efficacy(*arguments)

    monkeypatch.setattr(module, "efficacy", stopped)
    assert command() == 130
    monkeypatch.setattr(module, "efficacy", efficacy)
    assert not (path / "edits/edit.json").exists()
    capsys.readouterr()
    assert command() == 0
    assert "2 of them are there already; going on" in capsys.readouterr().out
    for name in ("adapters.safetensors", "keys.safetensors", "edit.json"):
        assert (path / "edits" / name).read_bytes() == (path / "whole" / name).read_bytes()

    edit = rm.load_edit(path / "edits")
    assert edit.requests[4] == rm.EditRequest("The home of {} is", "q 0", "r")
    model, _ = rm.load(path / "model", dtype="float32")
    before = arrays(model)
    with edit.applied(model):
        assert any((before[name] != value).any() for name, value in arrays(model).items())


def test_a_fact_is_withdrawn_from_what_was_saved(place, capsys):
    path, command = place
    assert command() == 0
    both = rm.load_edit(path / "edits")
    assert main(["edits", "withdraw", str(path / "edits"), "--subject", "ab 1", "--model",
                 str(path / "model")]) == 0
    assert "Withdrawn: ab 1 lives in → xy" in capsys.readouterr().out
    less = rm.load_edit(path / "edits")
    assert less.requests == [one for one in both.requests if one.subject != "ab 1"]
    assert main(["edits", "withdraw", str(path / "edits"), "--subject", "ab 1"]) == 2
    assert "no fact of 'ab 1'" in capsys.readouterr().err
    assert command() == 0  # the directory remembers, and what is there is not written again
    assert rm.load_edit(path / "edits").requests == less.requests
    assert main(["edits", "withdraw", str(path / "model"), "--subject", "ab 1"]) == 2
    assert "holds no sequence" in capsys.readouterr().err


def test_other_requests_and_settings_are_refused_by_name(place, capsys):
    path, command = place
    assert command() == 0
    for change, words in ((["--seed", "1"], "other settings (seed 0, not 1"),
                          (["--layer", "2"], "other settings (layers")):
        assert command(*change) == 2
        assert words in capsys.readouterr().err
    (path / "requests.json").write_text(json.dumps([*RECORDS[1:], RECORDS[0]]))
    assert command() == 2
    assert "its request 0 is 'ab 0 lives in'" in capsys.readouterr().err
    assert main(["edit", "--batch", "2", "--prompt", "{} is", "--subject", "a",
                 "--target-new", "b"]) == 2
    assert "--batch is of --requests" in capsys.readouterr().err
