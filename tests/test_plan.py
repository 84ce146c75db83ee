"""plan(): what a command will take, before the weights are read."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import rome_mlx as rm
from rome_mlx import planning as module
from rome_mlx.cli import main
from rome_mlx.cli.common import tokens_about
from rome_mlx.models import loading

PROMPT = ["--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower"]


@pytest.fixture(scope="module")
def directory(default_model):
    return loading.describe(*default_model)["path"]


def test_what_it_says_of_the_weights_is_what_loading_makes_of_them(directory, default_model):
    found = rm.plan(directory, "trace")
    size = sum(w.nbytes for _, w in tree_flatten(default_model[0].parameters()))
    if mx.default_device() == mx.cpu:
        assert found.weights == size and found.dtype == "float32"
    assert found.memory > found.weights and [s.name for s in found.steps] == ["start", "trace"]


def test_more_work_takes_longer(directory, monkeypatch):
    monkeypatch.setattr(module._Work, "_rate", 1e11)  # no trial, which a busy machine disturbs

    def work(**options):
        return sum(step.seconds for step in rm.plan(directory, **options).steps[1:])

    assert work(command="trace", samples=100) > 2 * work(command="trace", samples=2)
    assert work(command="trace", all_tokens=True) > work(command="trace")
    assert work(command="trace", tokens=100, later=90) > 5 * work(command="trace", tokens=100,
                                                                  later=5)
    assert work(command="eval", cases=500) > 10 * work(command="eval", cases=5)
    assert work(command="eval", measures=["wild"]) > work(command="eval", measures=["negation"])
    assert work(command="eval", measures=["negation"]) > work(command="eval")
    assert work(command="edit") > work(command="edit", verification=False)


def test_facts_that_are_written_together_are_held_together(directory):
    def memory(cases, method):
        return rm.plan(directory, cases=cases, method=method, verification=False).memory

    assert memory(32, "memit") > 2 * memory(1, "memit")
    assert memory(100, "memit") == memory(32, "memit")
    assert memory(100, "rome") == memory(1, "rome")


def test_missing_moments_are_counted_in(directory, tmp_path):
    names = [s.name for s in rm.plan(directory, "edit", moments=tmp_path).steps]
    assert "moments" in names
    assert "moments" not in [s.name for s in rm.plan(directory, "edit", layers=5).steps]


def test_what_does_not_fit_is_refused_with_the_remedy(directory, monkeypatch):
    monkeypatch.setattr(module, "memory_of_machine", lambda: 10**8)
    with pytest.raises(rm.RomeError, match="4-bit copy"):
        rm.plan(directory, "edit").check()
    monkeypatch.setattr(loading, "memory_of_machine", lambda: 10**7)
    with pytest.raises(rm.RomeError, match=r"take 0\.\d GB .* 4-bit copy"):
        rm.load(directory)


def test_an_unknown_command_is_refused():
    with pytest.raises(rm.RomeError, match="'walk' is unknown; choose from trace"):
        rm.plan(command="walk")


def test_text_before_the_subject_is_told_from_text_behind():
    text = "which many people know " * 20
    before, behind = (tokens_about([rm.EditRequest(prompt, "The Louvre", "Rome")])
                      for prompt in (text + "{} is in", "{} " + text + "is in"))
    assert before["tokens"] == behind["tokens"] > 100
    assert before["later"] < 10 < 100 < behind["later"]


@pytest.mark.parametrize("command", [
    ["trace", *PROMPT], ["edit", *PROMPT, "--target-new", "Rome", "--save-path", "{}/edit"],
    ["moments", "--layers", "5", "--output", "{}/moments"],
    ["locate", "--facts", "{}/facts.json", "--output", "{}/located"],
    ["eval", "counterfact", "--limit", "10", "--output", "{}/run"]], ids=lambda c: c[0])
def test_a_dry_run_says_it_and_writes_nothing(command, tmp_path, capsys):
    facts = [{"prompt": "{} is in", "subject": "The Eiffel Tower", "attribute": "Paris"}]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    assert main([word.format(tmp_path) if "/" in word else word for word in command]
                + ["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{command[0]}: about ") and max(map(len, said.splitlines())) <= 80
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]
