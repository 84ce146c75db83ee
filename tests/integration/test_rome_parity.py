"""The same edits as the ROME authors' own code, on the default model (tests/reference)."""

import mlx.core as mx
import numpy as np
import pytest
import recorded
from recorded import TOLERANCE

import rome_mlx as rm

REFERENCE = recorded.read("edits.json")
EDITS = pytest.mark.parametrize("theirs", REFERENCE["edits"], ids=lambda edit: edit["subject"])


@pytest.fixture(scope="module")
def edit_of(default_model):
    """Our edit of a recorded one's request, found once."""
    found = {}

    def edit(theirs):
        if theirs["subject"] not in found:
            request = rm.EditRequest(theirs["prompt"], theirs["subject"], theirs["target_new"])
            layer = theirs["layer"]
            found[theirs["subject"]] = rm.rome(
                *default_model, request, layer, moments={layer: recorded.second_moment(layer)},
                context_templates=REFERENCE["context_templates"], hyperparameters="published")
        return found[theirs["subject"]]

    return edit


def from_parallel(a, b) -> float:
    """1 − cosine."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def assert_predicts(model, tokenizer, theirs, prompts):
    """P(target) and the three likeliest tokens after every prompt are those recorded."""
    for recorded_prompt in prompts:
        ids = tokenizer.encode(recorded_prompt["prompt"])
        logits = np.array(model(mx.array([ids]))[0, -1], np.float64)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        token, = tokenizer.encode(" " + theirs["target_new"])
        assert p[token] == pytest.approx(recorded_prompt["target_new_prob"],
                                         abs=TOLERANCE["after the edit"])
        for i, (text, top) in zip(np.argsort(-p), recorded_prompt["top"], strict=False):
            assert tokenizer.decode([int(i)]) == text
            assert p[i] == pytest.approx(top, abs=TOLERANCE["after the edit"])


@EDITS
def test_the_update_is_the_authors(edit_of, theirs):
    edit = edit_of(theirs)
    for name, value in REFERENCE["hyperparameters"].items():
        assert getattr(edit.hyperparameters, name) == value
    for side in ("left", "right"):
        ours, other = getattr(edit, f"{side}_vector"), theirs[f"{side}_vector"]
        assert from_parallel(ours, other) <= TOLERANCE[f"{side} vector"]
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(other), rel=7e-5)


@EDITS
def test_every_step_towards_the_value_is_the_authors(edit_of, theirs):
    steps = edit_of(theirs).losses
    assert len(steps) == len(theirs["losses"]) == 20
    for ours, other in zip(steps, theirs["losses"], strict=True):
        assert ours["probability"] == pytest.approx(other["probability"], abs=1.3e-4)
        for name in ("total", "nll", "kl", "decay"):
            assert ours[name] == pytest.approx(other[name], abs=6e-4)  # printed to three decimals


@EDITS
def test_the_model_predicts_as_the_authors_before_and_after(default_model, edit_of, theirs):
    model, tokenizer = default_model
    assert_predicts(model, tokenizer, theirs, theirs["before"])
    with edit_of(theirs).applied(model):
        assert_predicts(model, tokenizer, theirs, theirs["after"])
