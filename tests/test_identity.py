"""Which model is this: the same on every copy, another when anything is changed."""

import json
from copy import deepcopy

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from samples import arrays
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.models.identity import Identity, fingerprint, same
from rome_mlx.models.weights import cast

PATH = "model.layers.1.mlp.down_proj"
REQUEST = rm.EditRequest("{} was", "a long subject", "b")


def model_of(**overrides):
    return tiny_model("llama", hidden_size=64, intermediate_size=64, **overrides)


def edit_of(seed: int = 0) -> rm.Edit:
    random = np.random.RandomState(seed)
    return rm.Edit("rome", [REQUEST], {PATH: rm.LowRank(random.randn(64, 1),
                                                        random.randn(1, 64))}, [1])


def test_two_copies_of_a_model_are_one_and_two_seeds_are_two():
    assert Identity.of(model_of()).difference(Identity.of(model_of())) is None
    assert Identity.of(model_of(seed=1)).difference(Identity.of(model_of())) == "other weights"


def test_a_quantized_model_is_its_float_copy():
    model = model_of()
    nn.quantize(model, group_size=32, bits=4)
    quantized = Identity.of(model)
    assert quantized.difference(Identity.of(model_of())) == "other weights"
    assert Identity.of(cast(model, mx.float32)).difference(quantized) is None


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_quantized_model_with_scales_of_16_bits_is_one_however_it_is_loaded(dtype):
    model = model_of()
    model.set_dtype(dtype)
    nn.quantize(model, group_size=32, bits=4)
    stored = Identity.of(model)
    packed, floats = deepcopy(model), deepcopy(model)
    for other in (cast(packed, mx.float32, True), cast(floats, mx.float32)):
        assert Identity.of(other).difference(stored) is None


def test_sums_are_exact_where_mlxs_own_are_not():
    """MLX's norm of this weight is off by a percent on a CPU: a GPU's would be another model's."""
    layer = nn.Linear(4096, 4096, bias=False)
    layer.weight = mx.full((4096, 4096), 0.013) + 1e-3 * layer.weight
    w = np.array(layer.weight, np.float64)
    found = fingerprint(layer)
    np.testing.assert_allclose(found[2], np.linalg.norm(w), rtol=1e-12)
    signs = np.random.RandomState(0)
    left, right = (signs.choice([-1.0, 1.0], (8, 4096)) for _ in range(2))
    np.testing.assert_allclose(found[3:], (left @ w * right).sum(1) / found[2], atol=1e-12)


def test_a_fingerprint_of_version_0_1_with_its_bad_norm_is_still_known():
    found = fingerprint(model_of().model.layers[1].mlp.down_proj)
    old = [*found[:2], 0.987 * found[2], *(x / 0.987 for x in found[3:])]
    assert same(found, old) and same(old, found)
    assert not same(found, [*found[:3], *(x / 0.987 for x in found[3:])])
    assert not same(found, [*found[:3], found[3] + 1e-4, *found[4:]])


def test_both_copies_of_the_default_model_are_one(default_model, default_model_4bit):
    one, other = (Identity.of(model) for model, _ in (default_model, default_model_4bit))
    assert one.difference(other) is None and one.digest == other.digest


@pytest.mark.parametrize("name", [name for name, _ in tree_flatten(model_of().parameters())])
def test_a_small_change_of_any_array_is_another_model(name):
    """One down projection stood for all of it: attention could be fine-tuned unseen."""
    model = model_of()
    before, values = Identity.of(model), dict(tree_flatten(model.parameters()))
    noise = mx.array(np.random.RandomState(0).randn(*values[name].shape), dtype=mx.float32)
    model.load_weights([(name, values[name] * (1 + 1e-3 * noise))], strict=False)
    assert Identity.of(model).difference(before) == "other weights"


@pytest.mark.parametrize("wrap", [LoRALinear.from_base, DoRALinear.from_base])
def test_an_adapter_is_seen_and_the_base_below_it_is_the_same(wrap):
    model = model_of()
    before = Identity.of(model)
    attention = model.layers[2].self_attn
    attention.v_proj = wrap(attention.v_proj)
    model.model.embed_tokens = LoRAEmbedding.from_base(model.model.embed_tokens)
    adapted = Identity.of(model)
    assert adapted.same_base(before) and adapted.difference(before) == "an adapter"
    assert before.difference(adapted) == "no adapter"
    attention.v_proj.lora_b = attention.v_proj.lora_b + 1
    assert Identity.of(model).difference(adapted) == "other adapters"


@pytest.mark.parametrize("bits", [None, 4])
def test_applied_edits_are_seen_and_set_aside(bits):
    model = model_of()
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    before = Identity.of(model)
    one, other = edit_of(), edit_of(1)
    with one.applied(model), other.applied(model):
        edited = Identity.of(model)
        assert edited.difference(before) == "2 edits applied"
        assert edited.unedited.difference(before) is None
        assert edited.edits == (one.digest, other.digest)
    with other.applied(model), one.applied(model):
        assert Identity.of(model).difference(edited) == "other edits applied"
    assert Identity.of(model).difference(before) is None


def test_it_goes_through_json_and_what_is_none_is_refused():
    identity = Identity.of(model_of())
    again = Identity.from_json(json.loads(json.dumps(identity.to_json())))
    assert again == identity and again.digest == identity.digest
    for bad in ({"base": [1.0]}, {}, [], {**identity.to_json(), "base": ["x"] * 16}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Identity.from_json(bad)


def test_one_saved_edit_loaded_twice_is_one_edit(tmp_path):
    """Both copies were applied, which doubled it."""
    model = model_of()
    edit = rm.rome(model, FakeTokenizer(), REQUEST, 1, moments={1: np.eye(64)},
                   context_templates=["{}"], hyperparameters={"v_num_grad_steps": 2})
    edit.save(tmp_path / "edit")
    before = arrays(model)
    one, other = rm.load_edit(tmp_path / "edit"), rm.load_edit(tmp_path / "edit")
    assert one.digest == other.digest == edit.digest
    one.apply(model)
    for copy in (other, edit):
        assert copy.is_applied(model)
        with pytest.raises(rm.RomeError, match="applied to .* already; revert it first"):
            copy.apply(model)
    other.revert(model)
    assert not one.is_applied(model)
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_edit_is_refused_by_a_model_that_was_tuned_elsewhere():
    model = model_of()
    edit = rm.rome(model, FakeTokenizer(), REQUEST, 1, moments={1: np.eye(64)},
                   context_templates=["{}"], hyperparameters={"v_num_grad_steps": 2})
    attention = model.layers[3].self_attn
    attention.o_proj.weight = attention.o_proj.weight * 1.01
    with pytest.raises(rm.RomeError, match="others of this model are not"):
        edit.apply(model)
    with edit.applied(model, force=True):
        assert edit.is_applied(model)
