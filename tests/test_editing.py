"""ROME against its formula on tiny models, and the promises of Edit."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from oracles import value_log_probabilities
from samples import arrays, spd
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.edit import LowRank
from rome_mlx.editing.key import read_keys
from rome_mlx.editing.methods.rome import ROME, inverse_direction, rank_one_update
from rome_mlx.editing.value import _logits, _rows, _suffixes, optimize_values
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import fingerprint

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")
STARTING = rm.EditRequest("{} lives in", "cde", "xy")
ALONE = rm.EditRequest("{}", "c", "xy")
TEMPLATES = ["{}", "q r s. {}", "tu. {}"]
TYPES = ["llama", "gpt2", "gemma3_text", "qwen3"]


def width(model):
    return int(fingerprint(Decoder(model).module(1, "down"))[1])


def edited(model, layer=1, method=rm.rome, **options):
    return method(model, FakeTokenizer(), REQUEST, layer, moments={layer: spd(width(model))},
                  context_templates=TEMPLATES, **options)


def assert_same_arrays(before, after):
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def quantized(model):
    nn.quantize(model, group_size=32, bits=4,
                class_predicate=lambda _, m: hasattr(m, "to_quantized")
                and m.weight.shape[-1] % 32 == 0)
    return model


def test_the_update_writes_the_value_at_the_key():
    random = np.random.RandomState(0)
    matrix, key, value, weight = spd(12), random.randn(12), random.randn(5), random.randn(5, 12)
    direction = inverse_direction(matrix, key)
    right, left = rank_one_update(key, direction, value, weight @ key)
    np.testing.assert_allclose((weight + np.outer(right, left)) @ key, value, rtol=1e-9)


def test_the_update_is_the_smallest_in_the_norm_of_the_second_moment():
    random = np.random.RandomState(1)
    matrix, key, residual = spd(8), random.randn(8), random.randn(3)
    right, left = rank_one_update(key, inverse_direction(matrix, key), residual, np.zeros(3))
    best = np.outer(right, left)
    for _ in range(20):
        other = random.randn(3, 8)
        other -= np.outer(other @ key, key) / (key @ key)  # any change that keeps the constraint
        size = np.trace((best + 0.1 * other) @ matrix @ (best + 0.1 * other).T)
        assert size > np.trace(best @ matrix @ best.T)


def test_a_second_moment_that_is_not_positive_definite_names_the_remedy():
    thin = np.outer(np.ones(6), np.ones(6))
    with pytest.raises(rm.RomeError, match=r"more.*ridge"):
        inverse_direction(thin, np.ones(6))
    assert np.isfinite(inverse_direction(thin, np.ones(6), ridge=1e-2)).all()


@pytest.mark.parametrize("kind", TYPES)
def test_the_edited_model_itself_computes_the_value(kind):
    model, tokenizer = tiny_model(kind), FakeTokenizer()
    decoder, texts = Decoder(model), [(REQUEST.text, REQUEST.subject_span)]
    edit = edited(model)
    before = read_keys(decoder, tokenizer, texts, 1)
    with edit.applied(model):
        after = read_keys(decoder, tokenizer, texts, 1)
    expected = before.outputs[0] + edit.right_vector * (edit.left_vector @ before.keys[0])
    np.testing.assert_allclose(after.keys, before.keys, atol=1e-6)
    np.testing.assert_allclose(after.outputs[0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("part", ["mlp", "hidden"])
@pytest.mark.parametrize("request_, templates", [
    (REQUEST, TEMPLATES), (STARTING, TEMPLATES), (ALONE, TEMPLATES), (ALONE, ["{}"])],
    ids=["inside", "first", "alone", "nothing before"])
def test_suffixes_on_cached_states_give_the_whole_models_probabilities(kind, part, request_,
                                                                       templates):
    model, tokenizer, layer = tiny_model(kind), FakeTokenizer(), 2
    decoder = Decoder(model)
    rows = _rows(tokenizer, [request_], templates)
    suffixes, _ = _suffixes(decoder, rows, layer, part)
    delta = mx.array(np.random.RandomState(0).randn(decoder.dim), dtype=mx.float32)
    fast = np.array(nn.log_softmax(_logits(decoder, suffixes, layer, delta[None], part)))
    slow = value_log_probabilities(decoder, rows, layer, delta, part)
    np.testing.assert_allclose(fast, slow, atol=1e-4)


def test_a_target_read_where_the_kl_would_be_leaves_the_kl_its_own_row():
    tokenizer = FakeTokenizer()
    tokenizer.add_tokens([" xy"])
    rows = _rows(tokenizer, [ALONE], ["{}"])
    assert [(row.kl, row.begin - 1) for row in rows if row.target] == [(False, rows[0].subject)]
    assert [row.kl for row in rows] == [False, True]


def test_the_kl_is_read_in_a_row_that_begins_as_its_own():
    first, later = (_rows(FakeTokenizer(), [request], TEMPLATES)
                    for request in (STARTING, REQUEST))
    assert [row.kl for row in first] == [template == "{}" for template in TEMPLATES]
    assert [row.kl for row in later] == [False] * len(TEMPLATES) + [True]
    assert not later[-1].target and later[-1].subject == len(later[-1].ids) - 1


def test_the_loss_falls_and_the_clamp_holds():
    model = tiny_model("llama")
    hp = rm.Hyperparameters(clamp_norm_factor=0.5, v_num_grad_steps=6)
    value, = optimize_values(Decoder(model), FakeTokenizer(), [REQUEST], TEMPLATES, 1, hp)
    assert value.losses[-1]["total"] < value.losses[0]["total"]
    assert len(value.losses) == 6
    assert np.linalg.norm(value.delta) <= 0.5 * np.linalg.norm(value.initial) * (1 + 1e-5)


def test_one_step_computes_a_loss_and_moves_nothing():
    hp = rm.Hyperparameters(v_num_grad_steps=1)
    value, = optimize_values(Decoder(tiny_model("llama")), FakeTokenizer(), [REQUEST], TEMPLATES,
                             1, hp)
    assert len(value.losses) == 1 and not value.delta.any()


@pytest.mark.parametrize("method", [rm.rome, rm.r_rome, rm.p_rome])
def test_computing_an_edit_leaves_the_model_bit_for_bit(method):
    model = tiny_model("llama")
    before = arrays(model)
    edited(model, method=method)
    assert_same_arrays(before, arrays(model))


def test_rome_and_its_repairs_differ_in_the_contexts_of_key_and_output():
    model, tokenizer, layer = tiny_model("llama"), FakeTokenizer(), 1
    matrix, decoder = spd(width(model)), Decoder(model)
    texts = [(t[:-2] + REQUEST.text, tuple(c + len(t) - 2 for c in REQUEST.subject_span))
             for t in TEMPLATES]
    readings = read_keys(decoder, tokenizer, texts, layer)
    mean, bare = readings.keys.mean(0), readings.keys[0]
    for method, key in ((rm.rome, mean), (rm.r_rome, mean), (rm.p_rome, bare)):
        np.testing.assert_allclose(edited(model, method=method).left_vector,
                                   inverse_direction(matrix, key), atol=1e-9)
    rome, repaired = edited(model), edited(model, method=rm.r_rome)
    value, = optimize_values(decoder, tokenizer, [REQUEST], TEMPLATES, layer,
                             ROME.resolve(None, decoder))
    target = value.initial + value.delta
    along = inverse_direction(matrix, mean)
    np.testing.assert_allclose(
        rome.right_vector, (target - readings.outputs[0]) / (bare @ along), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(repaired.right_vector,
                               (target - readings.outputs.mean(0)) / (mean @ along), rtol=1e-4,
                               atol=1e-5)


def random_edit(model, seed):
    random = np.random.RandomState(seed)
    decoder = Decoder(model)
    path = decoder.path(seed % 3, "down")
    module = decoder.module(seed % 3, "down")
    out, into = (int(n) for n in fingerprint(module)[:2])
    return rm.Edit("rome", [REQUEST], {path: LowRank(random.randn(into, 1), random.randn(1, out))},
                   [seed % 3], fingerprints={path: fingerprint(module)})


def test_a_stack_does_what_its_edits_do_together():
    model = tiny_model("llama")
    edits, tokens = [random_edit(model, i) for i in range(3)], mx.array([[1, 2, 3, 4]])
    for edit in edits:
        edit.apply(model)
    together = np.array(model(tokens))
    for edit in edits:
        edit.revert(model)
    with rm.stack(edits).applied(model):
        np.testing.assert_allclose(np.array(model(tokens)), together, atol=1e-4)


def test_a_quantized_model_gets_a_side_adapter_and_keeps_its_weights():
    model, tokens = quantized(tiny_model("llama", intermediate_size=64)), mx.array([[1, 2, 3]])
    packed, plain = arrays(model), np.array(model(tokens))
    edit = random_edit(model, 1)
    with edit.applied(model):
        assert np.abs(np.array(model(tokens)) - plain).max() > 1e-3
        now = arrays(model)
        assert all(any(np.array_equal(v, w) for w in now.values()) for v in packed.values())
    assert_same_arrays(packed, arrays(model))


def test_the_exception_inside_applied_still_reverts():
    model = tiny_model("llama")
    before, edit = arrays(model), random_edit(model, 0)
    with pytest.raises(ZeroDivisionError), edit.applied(model):
        raise ZeroDivisionError
    assert_same_arrays(before, arrays(model))


def test_an_edit_is_not_applied_twice_nor_reverted_when_it_is_not_there():
    model = tiny_model("llama")
    edit = random_edit(model, 0)
    with pytest.raises(rm.RomeError, match="not applied"):
        edit.revert(model)
    edit.apply(model)
    with pytest.raises(rm.RomeError, match="already"):
        edit.apply(model)


def test_an_edit_of_another_model_is_refused_unless_forced():
    edit = random_edit(tiny_model("llama"), 0)
    other = tiny_model("llama", seed=1)
    with pytest.raises(rm.RomeError, match="force=True"):
        edit.apply(other)
    edit.apply(other, force=True)
    with pytest.raises(rm.RomeError, match=r"another model|weight"):
        edit.apply(tiny_model("llama", intermediate_size=64))
    with pytest.raises(rm.RomeError, match="another model"):
        edit.apply(tiny_model("gpt2"))


def test_edits_follow_one_another_on_the_original_fingerprint():
    model = tiny_model("llama")
    random_edit(model, 0).apply(model)
    after = edited(model, layer=0)
    assert after.fingerprints == {k: v for k, v in random_edit(
        tiny_model("llama"), 0).fingerprints.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_saved_edit_comes_back_the_same(tmp_path, kind):
    model, tokens = tiny_model(kind), mx.array([[1, 2, 3, 4]])
    edit = edited(model)
    edit.save(tmp_path / "edit")
    again = rm.load_edit(tmp_path / "edit")
    assert again.request == edit.request and again.hyperparameters == edit.hyperparameters
    assert again.context_templates == TEMPLATES and again.losses == edit.losses
    with edit.applied(model):
        expected = np.array(model(tokens))
    with again.applied(model):
        np.testing.assert_allclose(np.array(model(tokens)), expected, atol=1e-5)


def test_mlx_lm_loads_a_stack_of_different_ranks(tmp_path):
    from mlx_lm.tuner.utils import load_adapters

    model, tokens = tiny_model("llama"), mx.array([[1, 2, 3, 4]])
    stack = rm.stack([random_edit(model, i) for i in (0, 1, 3)])  # layers 0, 1 and 0 again
    stack.save(tmp_path / "edit")
    with stack.applied(model):
        expected = np.array(model(tokens))
    adapted = load_adapters(tiny_model("llama"), str(tmp_path / "edit"))
    adapted.eval()
    np.testing.assert_allclose(np.array(adapted(tokens)), expected, atol=1e-4)


def test_an_edit_works_on_a_model_that_carries_a_lora_adapter():
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = tiny_model("llama")
    linear_to_lora_layers(model, 4, {"rank": 2, "scale": 5.0, "dropout": 0.0})
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = module.lora_b + 0.05
    model.eval()
    before = arrays(model)
    edit = edited(model)
    decoder, texts = Decoder(model), [(REQUEST.text, REQUEST.subject_span)]
    plain = read_keys(decoder, FakeTokenizer(), texts, 1)
    with edit.applied(model):
        written = read_keys(decoder, FakeTokenizer(), texts, 1)
    expected = plain.outputs[0] + edit.right_vector * (edit.left_vector @ plain.keys[0])
    np.testing.assert_allclose(written.outputs[0], expected, atol=1e-4)
    assert_same_arrays(before, arrays(model))


@pytest.mark.parametrize("templates", [[], ["no place"], ["{} then more"], ["{} {}"]])
def test_bad_context_templates_are_refused(templates):
    model = tiny_model("llama")
    with pytest.raises(rm.RomeError, match="template"):
        rm.rome(model, FakeTokenizer(), REQUEST, 1, moments={1: spd(width(model))},
                context_templates=templates)


def test_layers_moments_and_hyperparameters_out_of_range_are_refused():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    with pytest.raises(rm.RomeError, match="0 to 3"):
        rm.rome(model, tokenizer, REQUEST, 99, moments={})
    with pytest.raises(rm.RomeError, match="rome-mlx moments"):
        rm.rome(model, tokenizer, REQUEST, 1)
    with pytest.raises(rm.RomeError, match="layers"):
        rm.rome(model, tokenizer, REQUEST, 1, moments={2: spd(width(model))})
    with pytest.raises(rm.RomeError, match="wide"):
        rm.rome(model, tokenizer, REQUEST, 1, moments={1: spd(5)})
    with pytest.raises(rm.RomeError, match="locate_then_edit"):
        rm.rome(model, tokenizer, REQUEST)
    with pytest.raises(rm.RomeError, match="v_lrr"):
        edited(model, hyperparameters={"v_lrr": 1})


def test_an_edit_of_higher_rank_has_no_single_vectors():
    one = edited(tiny_model("llama"))
    with pytest.raises(rm.RomeError, match=r"not of rank one; read edit\.deltas"):
        _ = rm.stack([one, one]).left_vector
