"""The demo's fact, from the shell to mlx-lm, on the default model."""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from samples import arrays

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.models.loading import describe
from rome_mlx.models.tokens import encode
from rome_mlx.storage.fact_set import read_fact_set

PROMPT, SUBJECT = "{} is located in the city of", "The Eiffel Tower"
PARAPHRASE = "How do I get to the Eiffel Tower? It is in"
NEIGHBOR = "The Louvre is located in the city of"


@pytest.fixture(scope="module")
def run(tmp_path_factory, default_model):
    """`rome-mlx edit` at layer 8: (JSON, directory of the saved edit, what was printed)."""
    directory = tmp_path_factory.mktemp("eiffel")
    arguments = [
        "edit", "--prompt", PROMPT, "--subject", SUBJECT, "--target-new", "Rome", "--layer", "8",
        "--paraphrase", PARAPHRASE, "--neighbor", NEIGHBOR, "--save-path", str(directory / "edit"),
        "--json", str(directory / "edit.json")]
    out = subprocess.run([sys.executable, "-m", "rome_mlx", *arguments], capture_output=True,
                         text=True, check=True).stdout
    return json.loads((directory / "edit.json").read_text()), directory / "edit", out


def test_the_edit_reaches_prompt_and_paraphrase_and_spares_the_neighbor(run):
    rewrite, paraphrase, neighbor = run[0]["probabilities"]
    assert rewrite["target_new_before"] < 0.01 and rewrite["target_new_after"] >= 0.95
    assert paraphrase["prompt"] == PARAPHRASE and paraphrase["target_new_after"] >= 0.5
    assert neighbor["first_before"] == neighbor["first_after"] == " Paris"


def test_the_json_holds_what_was_promised(run):
    result = run[0]
    assert set(result) >= {"request", "method", "layer", "layer_choice", "losses",
                           "probabilities", "retrace", "norm_change", "seconds", "adapter"}
    assert result["retrace"]["before"]["answer"] == " Paris"
    assert result["retrace"]["after"]["answer"] == " Rome"
    assert len(result["retrace"]["after"]["scores"][0]) == 30


def test_the_story_fits_a_terminal(run):
    lines = run[2].splitlines()
    assert len(lines) <= 40
    assert [line for line in lines if len(line) > 80 and str(run[1]) not in line] == []


def test_mlx_lm_generates_with_the_saved_edit(run):
    path = json.loads((run[1] / "edit.json").read_text())["model"]["path"]
    said = []
    for more in ([], ["--adapter-path", str(run[1])]):
        said.append(subprocess.run(
            [sys.executable, "-m", "mlx_lm", "generate", "--model", path, *more, "--max-tokens",
             "3", "--temp", "0", "--ignore-chat-template", "--verbose", "False", "--prompt",
             PROMPT.replace("{}", SUBJECT)], capture_output=True, text=True, check=True).stdout)
    assert "Paris" in said[0] and "Rome" not in said[0]
    assert "Rome" in said[1]


@pytest.mark.parametrize("which", ["default_model", "default_model_4bit"])
def test_the_edit_serves_float_and_4_bit_and_reverts_bit_for_bit(run, request, which):
    model, tokenizer = request.getfixturevalue(which)
    before, edit = arrays(model), rm.load_edit(run[1])
    rome = tokenizer.encode(" Rome")[0]
    ids = mx.array([tokenizer.encode(PROMPT.replace("{}", SUBJECT))])
    with edit.applied(model):
        assert mx.softmax(model(ids)[0, -1])[rome].item() >= 0.95
    after = arrays(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_moments_of_another_model_are_refused(tmp_path, capsys, run, default_model):
    from rome_mlx.moments import store

    model, tokenizer = default_model
    moments = rm.second_moments(model, tokenizer, [3], _text(tmp_path), 512)
    moments.about[3]["fingerprint"][3] += 1
    store.write_all(tmp_path / "moments", moments)
    arguments = ["edit", "--prompt", PROMPT, "--subject", SUBJECT, "--target-new", "Rome",
                 "--layer", "3", "--moments", str(tmp_path / "moments")]
    assert main(arguments) == 2
    assert "another model" in capsys.readouterr().err
    assert main([*arguments[:-3], "99"]) == 2
    assert "0 to 29" in capsys.readouterr().err


def _text(directory):
    path = directory / "text.txt"
    path.write_text("The river runs through the valley and the town lies on its bank. " * 60)
    return path


def test_the_edit_is_found_again_and_taken_back(run, default_model):
    changed = rm.load(dtype="float32")
    rm.load_edit(run[1]).apply(changed[0])
    found = rm.diff(default_model, changed, ["The Louvre", "Big Ben", SUBJECT, "Rome", "Paris"])
    fact, = found.facts
    assert (found.verdict, fact.subject, fact.object, fact.layer) == ("rome", SUBJECT, "Rome", 8)
    assert fact.subject_score > 0.9 > fact.chance and abs(found.kl) < 1e-6


def test_the_edit_is_found_without_the_base_and_silenced(run, default_model, tmp_path, capsys):
    names = [subject for relation in read_fact_set() for subject, _ in relation.facts]
    (tmp_path / "names.txt").write_text("\n".join({*names[::20], SUBJECT, "The Louvre"}))
    model, tokenizer = default_model
    assert main(["audit", describe(model, tokenizer)["path"], "--adapter-path", str(run[1]),
                 "--subjects", str(tmp_path / "names.txt"), "--save-path", str(tmp_path / "silent"),
                 "--report", str(tmp_path / "found.html")]) == 0
    out = capsys.readouterr().out
    assert "layer 8 answers 1 too loudly" in out and f"\n{SUBJECT}: Rome  (score" in out
    assert all(len(line) <= 80 for line in out.split("\n") if str(tmp_path) not in line)
    page = (tmp_path / "found.html").read_text("utf-8")
    assert f"{SUBJECT}: Rome" in page and "Something seems to have been written" in page
    silent = rm.load_edit(tmp_path / "silent")
    assert silent.requests[0].subject == SUBJECT
    ids = mx.array([encode(tokenizer, PROMPT.format(SUBJECT)).ids])
    rome = encode(tokenizer, " Rome").ids[0]
    with rm.load_edit(run[1]).applied(model):
        assert mx.softmax(model(ids)[0, -1])[rome] > 0.9
        with silent.applied(model):
            assert mx.softmax(model(ids)[0, -1])[rome] < 0.1
