"""Fine-tuning, within bounds and with LoRA, and editors that follow one another."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from samples import arrays
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.methods import METHODS

REQUESTS = [rm.EditRequest("ab {} lives in", "cde", "xy"),
            rm.EditRequest("{} was", "a long subject", "b")]
MOMENT = np.diag(np.linspace(0.5, 1, tiny_model("llama").layers[1].mlp.down_proj.weight.shape[1]))
FAST = {"lr": 0.01, "steps": 12}
EDITORS = [(rm.finetune, FAST), (rm.finetune_l, FAST | {"clamp": 0.02}),
           (rm.lora, FAST | {"rank": 2})]


def edited(model, editor, hyperparameters, requests=REQUESTS, layer=1, **options):
    return editor(model, FakeTokenizer(), requests, layer, hyperparameters=hyperparameters,
                  **options)


def nll(model, request):
    """Mean NLL a token of the target, with teacher forcing, by the whole model."""
    ids = FakeTokenizer().encode(request.text + " " + request.target_new)
    logits, count = model(mx.array([ids]))[0], len(request.target_new)
    log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return -np.mean([log_p[-count - 1 + i, t].item() for i, t in enumerate(ids[-count:])])


@pytest.mark.parametrize("editor,hp", EDITORS)
@pytest.mark.parametrize("kind", ["llama", "llama 4-bit", "gpt2", "gemma3_text"])
def test_the_last_loss_is_the_edited_models_and_the_model_is_left_as_it_was(editor, hp, kind):
    model = tiny_model(kind.split()[0], **({"intermediate_size": 64} if "4" in kind else {}))
    if "4" in kind:
        nn.quantize(model, group_size=32, bits=4)
    before = arrays(model)
    edit = edited(model, editor, hp)
    after = arrays(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert edit.losses[0]["total"] == pytest.approx(
        np.mean([nll(model, r) for r in REQUESTS]), abs=1e-3)
    with edit.applied(model):
        written = np.mean([nll(model, r) for r in REQUESTS])
    assert edit.losses[-1]["total"] == pytest.approx(written, abs=2e-3)
    assert written < edit.losses[0]["total"] - 0.01
    assert len(edit.losses) == 13


def test_no_weight_leaves_its_bound():
    hp = {"lr": 0.05, "steps": 10, "clamp": 0.01}
    delta, = edited(tiny_model("llama"), rm.finetune_l, hp).deltas.values()
    change = np.abs(delta.a @ delta.b)
    assert change.max() <= 0.01 * (1 + 1e-6) and change.max() > 0.0099
    free, = edited(tiny_model("llama"), rm.finetune, {"lr": 0.05, "steps": 10}).deltas.values()
    assert np.abs(free.a @ free.b).max() > 0.05


def test_training_stops_at_the_loss_asked_for():
    edit = edited(tiny_model("llama"), rm.finetune, {"lr": 0.02, "steps": 60, "stop": 1.0})
    totals = [step["total"] for step in edit.losses]
    assert totals[-1] < 1.0 <= min(totals[:-1]) and len(totals) < 61


def test_lora_adapts_every_layer_unless_told_otherwise():
    model = tiny_model("llama")
    edit = edited(model, rm.lora, FAST | {"rank": 2}, layer=None)
    assert edit.layers == [0, 1, 2, 3] and all(d.rank == 2 for d in edit.deltas.values())
    again = edited(model, rm.lora, FAST | {"rank": 2}, layer=None)
    other = edited(model, rm.lora, FAST | {"rank": 2}, layer=None, seed=1)
    for path, delta in edit.deltas.items():
        np.testing.assert_array_equal(delta.b, again.deltas[path].b)
        assert not np.array_equal(delta.a, other.deltas[path].a)


@pytest.mark.parametrize("editor,hp", EDITORS)
def test_mlx_lm_loads_what_was_trained(tmp_path, editor, hp):
    from mlx_lm.tuner.utils import load_adapters

    model, tokens = tiny_model("llama"), mx.array([[1, 2, 3, 4]])
    edit = edited(model, editor, hp)
    edit.save(tmp_path / "edit")
    with rm.load_edit(tmp_path / "edit").applied(model):
        expected = np.array(model(tokens))
    adapted = load_adapters(tiny_model("llama"), str(tmp_path / "edit"))
    adapted.eval()
    np.testing.assert_allclose(np.array(adapted(tokens)), expected, atol=1e-4)
    assert rm.load_edit(tmp_path / "edit").hyperparameters == edit.hyperparameters


def test_lora_on_an_edited_4_bit_model_keeps_the_edit():
    model = tiny_model("llama", intermediate_size=64)
    nn.quantize(model, group_size=32, bits=4)
    first = edited(model, rm.finetune, FAST)
    first.apply(model)
    before = arrays(model)
    second = edited(model, rm.lora, FAST | {"rank": 2})
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with second.applied(model):
        written = np.mean([nll(model, r) for r in REQUESTS])
    assert second.losses[-1]["total"] == pytest.approx(written, abs=2e-3)
    first.revert(model)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_called_alike(name):
    model, request = tiny_model("llama"), REQUESTS[0]
    more = {"alphaedit": {"energy": 0.1}}.get(name, {})
    edit = METHODS[name].write(model, FakeTokenizer(), request, 1, moments={1: MOMENT},
                               context_templates=["{}", "q. {}"], hyperparameters=more,
                               seed=1, report=lambda losses: None)
    assert edit.method == name and edit.requests == [request] and edit.layers == [1]
    assert set(edit.losses[0]) == {"step", "total", "nll", "kl", "decay", "probability"}


def test_a_sequence_computes_each_edit_on_the_model_with_those_before_it():
    model = tiny_model("llama")
    before, losses = arrays(model), []
    for i, edit in enumerate(rm.in_sequence(model, FakeTokenizer(), REQUESTS, rm.finetune, 1,
                                            hyperparameters=FAST)):
        assert edit.requests == [REQUESTS[i]] and edit.is_applied(model)
        losses.append(edit.losses[0]["total"])
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert losses[0] == pytest.approx(nll(model, REQUESTS[0]), abs=1e-3)
    first = edited(model, rm.finetune, FAST, REQUESTS[:1])
    with first.applied(model):
        assert losses[1] == pytest.approx(nll(model, REQUESTS[1]), abs=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_writes_in_sequence_and_leaves_the_model_bit_for_bit(name):
    model = tiny_model("llama")
    before, seen = arrays(model), []
    more = {"alphaedit": {"energy": 0.1}}.get(name, {})
    for edit in rm.in_sequence(model, FakeTokenizer(), REQUESTS, METHODS[name].write, 1,
                               moments={1: MOMENT},
                               context_templates=["{}", "q. {}"], hyperparameters=more):
        seen.append(np.array(model.layers[1].mlp.down_proj.weight))
        assert edit.method == name
    first, second = seen
    assert not np.array_equal(first, before["model.layers.1.mlp.down_proj.weight"])
    assert not np.array_equal(first, second)
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("editor", [rm.rome, rm.r_rome, rm.p_rome])
def test_many_requests_in_a_call_of_a_rank_one_editor_name_the_remedy(editor):
    with pytest.raises(rm.RomeError, match=r"list.*in_sequence"):
        editor(tiny_model("llama"), FakeTokenizer(), REQUESTS, 1, moments={})
    with pytest.raises(rm.RomeError, match="batch is 0"):
        next(rm.in_sequence(tiny_model("llama"), FakeTokenizer(), REQUESTS, editor, 1, batch=0))


def test_a_sequence_that_is_left_restores_the_model():
    model = tiny_model("llama")
    before = arrays(model)
    sequence = rm.in_sequence(model, FakeTokenizer(), REQUESTS, rm.finetune, 1,
                              hyperparameters=FAST)
    next(sequence)
    assert not np.array_equal(before["model.layers.1.mlp.down_proj.weight"],
                              model.layers[1].mlp.down_proj.weight)
    sequence.close()
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_sequence_of_batches_writes_as_many_requests_a_call():
    edits = list(rm.in_sequence(tiny_model("llama"), FakeTokenizer(), REQUESTS, rm.finetune, 1,
                                batch=2, hyperparameters=FAST))
    assert [edit.requests for edit in edits] == [REQUESTS]


def test_conflicts_in_a_sequence_and_in_training_are_refused():
    bad = [*REQUESTS, rm.EditRequest("ab  {} lives in ", "cde", "z")]  # spacing is no difference
    with pytest.raises(rm.RomeError, match="conflicting"):
        next(rm.in_sequence(tiny_model("llama"), FakeTokenizer(), bad, rm.memit, [1], batch=3))
    with pytest.raises(rm.RomeError, match="conflicting"):
        edited(tiny_model("llama"), rm.lora, FAST, bad)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(rm.RomeError, match="0 to 3"):
        edited(tiny_model("llama"), rm.finetune, FAST, layer=4)
    with pytest.raises(rm.RomeError, match="0 to 3"):
        edited(tiny_model("llama"), rm.lora, FAST, layer=[3, 4])
