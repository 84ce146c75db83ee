"""Locate, edit and verify on a tiny model, and what the whole way promises."""

import json

import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from samples import needs_exact
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.layer_choice import layer_to_edit
from rome_mlx.editing.methods import METHODS
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.kept import Kept
from rome_mlx.models.probabilities import target_probabilities
from rome_mlx.pipeline import locate_then_edit_all
from rome_mlx.tracing.decision import decide, first_candidate, scaled_window
from rome_mlx.tracing.trace import kept_trace

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")


def identity(model):
    dim = rm.trace(model, FakeTokenizer(), REQUEST.fact, samples=1).scores.shape[1]
    return {layer: np.eye(48) for layer in range(dim)}


@pytest.fixture(scope="module")
def run():
    model = tiny_model("llama")
    before = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    stages = []
    result = rm.locate_then_edit(
        model, FakeTokenizer(), REQUEST, moments=identity(model), context_templates=["{}", "q. {}"],
        paraphrases=["where cde lives is"], neighbors=["ab fgh lives in"], samples=3,
        progress=lambda stage, found: stages.append(stage))
    return model, before, result, stages


def test_the_edit_is_written_and_the_model_is_left_as_it_was(run):
    model, before, result, _ = run
    after = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    assert all(np.array_equal(before[k], after[k]) for k in before)
    check = result.verification.prompts[0]
    expected = target_probabilities(model, FakeTokenizer(), [(REQUEST.text, "xy")])[0]
    assert check.target_new_before == pytest.approx(expected, rel=1e-4)
    with result.edit.applied(model):
        expected = target_probabilities(model, FakeTokenizer(), [(REQUEST.text, "xy")])[0]
    assert check.target_new_after == pytest.approx(expected, rel=1e-4)
    assert check.target_new_after > check.target_new_before
    assert result.verification.written == (check.target_new_after > check.target_true_after)


def test_every_prompt_is_measured_in_its_role(run):
    roles = [(p.role, p.prompt) for p in run[2].verification.prompts]
    assert roles == [("rewrite", "ab cde lives in"), ("paraphrase", "where cde lives is"),
                     ("neighbor", "ab fgh lives in")]


def test_progress_tells_the_stages_in_order(run):
    stages = run[3]
    assert stages[0] == "trace" and stages[-1] == "edit" and set(stages[1:-1]) == {"step"}


def test_the_result_is_plain_json(run):
    again = json.loads(json.dumps(run[2].to_json()))
    assert again["layer"] == run[2].layer
    assert again["retrace"]["after"]["answer"] == again["probabilities"][0]["first_after"]


@needs_exact
def test_without_verification_the_edit_is_the_same_and_nothing_is_measured(run, monkeypatch):
    model, _, whole, _ = run
    options = {"moments": identity(model), "context_templates": ["{}", "q. {}"],
               "layer": whole.layer, "verification": False}
    monkeypatch.setattr("rome_mlx.pipeline.verify", None)
    monkeypatch.setattr("rome_mlx.tracing.trace.trace", None)
    result = rm.locate_then_edit(model, FakeTokenizer(), REQUEST, **options)
    assert result.edit.digest == whole.edit.digest
    assert result.trace is None is result.verification and result.decisive_layer is None
    found = json.loads(json.dumps(result.to_json()))
    assert found["trace"] is None and "probabilities" not in found


@needs_exact
def test_the_unedited_model_is_traced_and_asked_once(run, monkeypatch):
    model, _, first, _ = run
    with monkeypatch.context() as once:
        once.setattr("rome_mlx.tracing.trace.trace", None)
        kept = kept_trace(Kept(model, FakeTokenizer()), model, FakeTokenizer(), REQUEST.fact,
                          kind="mlp", samples=3, noise="s3", window=first.trace.window,
                          token_range="subject_last")
    for name, value in vars(first.trace).items():
        np.testing.assert_array_equal(getattr(kept, name), value)
        assert type(getattr(kept, name)) is type(value)
    again = rm.locate_then_edit(
        model, FakeTokenizer(), REQUEST, moments=identity(model), context_templates=["{}", "q. {}"],
        paraphrases=["where cde lives is"], neighbors=["ab fgh lives in"], samples=3)
    assert again.to_json() == first.to_json()


def test_verify_sets_an_applied_edit_aside_and_puts_it_back(run):
    model, _, result, _ = run
    with result.edit.applied(model):
        check = rm.verify(model, FakeTokenizer(), result.edit, retrace=False)
        assert result.edit.is_applied(model)
    assert check.prompts[0].target_new_before == pytest.approx(
        result.verification.prompts[0].target_new_before, rel=1e-4)


def test_a_probability_of_several_tokens_is_their_product():
    import mlx.core as mx

    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    logits = model(mx.array([tokenizer.encode("ab xy")]))[0]
    p = mx.softmax(logits, axis=-1)
    x, y = tokenizer.encode("xy")
    assert target_probabilities(model, tokenizer, [("ab", "xy")])[0] == pytest.approx(
        p[2, x].item() * p[3, y].item(), rel=1e-4)


def test_a_layer_out_of_range_is_refused_before_anything_is_traced():
    with pytest.raises(rm.RomeError, match="0 to 3"):
        rm.locate_then_edit(tiny_model("llama"), FakeTokenizer(), REQUEST, layer=99)


def test_many_requests_are_written_by_one_edit_at_layers_up_to_the_chosen_one():
    model = tiny_model("llama")
    cases = [(REQUEST, ["where cde lives is"], []),
             (rm.EditRequest("{} was", "a long subject", "b"), [], ["c was"])]
    results = locate_then_edit_all(
        model, FakeTokenizer(), cases, layer=2, method="memit", samples=2,
        moments=identity(model), context_templates=["{}"],
        hyperparameters={"layers": [4, 5, 9], "update_weight": 1e-3})
    assert results[0].edit is results[1].edit and results[0].edit.layers == [0, 1, 2]
    assert results[0].edit.requests == [case[0] for case in cases]
    for result, (request, _, _) in zip(results, cases, strict=True):
        assert result.request == request
        assert result.to_json()["request"]["subject"] == request.subject
        check = result.verification.prompts[0]
        assert check.prompt == request.text
        assert check.target_new_after > check.target_new_before
    with pytest.raises(rm.RomeError, match="one request at a time"):
        locate_then_edit_all(model, FakeTokenizer(), cases, method="rome")


def test_fine_tuning_needs_no_moments():
    result = rm.locate_then_edit(tiny_model("llama"), FakeTokenizer(), REQUEST, layer=1,
                                 method="ft", samples=2, hyperparameters={"lr": 0.01})
    assert result.edit.method == "ft" and result.verification.prompts[0].target_new_after > 0


def test_the_layer_is_the_models_whatever_the_facts_trace_says(run):
    assert layer_to_edit(Decoder(run[0]), METHODS["rome"]).how == "depth"
    found = rm.trace(run[0], FakeTokenizer(), REQUEST.fact, kind="mlp", window=2, noise=1e-6)
    assert found.decisive_layer is None and not found.decision.clear


def test_a_trace_says_the_same_layer_whatever_it_restores():
    """Windows of ten exclude the lower layers, and hidden states have another peak: neither was
    what an edit followed."""
    model = tiny_model("llama", num_hidden_layers=12)
    rule = rm.trace(model, FakeTokenizer(), REQUEST.fact, kind="mlp", samples=2, noise=0.5,
                    window=scaled_window(12), token_range="subject_last")
    np.testing.assert_array_equal(rule.deciding, rule.scores[0])
    for options in (dict(kind="hidden"), dict(kind="mlp", window=10), dict(kind="attn"),
                    dict(severed="mlp"), dict(token_range=(0, 1))):
        other = rm.trace(model, FakeTokenizer(), REQUEST.fact, samples=2, noise=0.5, **options)
        np.testing.assert_allclose(other.deciding, rule.deciding, atol=1e-6)
        assert other.decisive_layer == rule.decisive_layer
        assert other.to_json()["decisive_layer"] == rule.decisive_layer


def test_layer_0_does_not_decide_by_dominating_every_window_that_holds_it():
    effect = np.array([0.5, 0.5, 0.5, 0.05, 0.3, 0.05, 0.04, 0.03])
    assert decide(effect, 0.6, first_candidate("mlp", 4)).layer == 4
    assert decide(effect, 0.6, first_candidate("mlp", 4)).clear
    assert not decide(effect, 0.01, 3).clear
    assert not decide(np.full(8, 0.3), 0.6, 3).clear


def test_the_window_is_the_papers_in_proportion_to_depth():
    assert [scaled_window(n) for n in (4, 30, 48)] == [2, 6, 10]
