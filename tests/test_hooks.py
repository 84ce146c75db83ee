"""intercept() reads and replaces, and always puts the model back."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.models.hooks import find_module, intercept

IDS = mx.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
MLP = "model.layers.1.mlp"


@pytest.fixture
def model():
    return tiny_model("llama", intermediate_size=64)


def equal(one, other) -> bool:
    return np.array_equal(np.array(one), np.array(other))


def classes(model) -> dict:
    return {path: type(module) for path, module in model.named_modules()}


def test_keep_reads_outputs_and_inputs(model):
    down = MLP + ".down_proj"
    with intercept(model, [MLP, down], keep_inputs=[MLP, down]) as seen:
        model(IDS)
    assert set(seen) == {MLP, MLP + ":input", down, down + ":input"}
    assert seen[MLP].shape == (2, 5, 32) and seen[down + ":input"].shape == (2, 5, 64)
    mlp = find_module(model, MLP)
    assert equal(mlp(seen[MLP + ":input"]), seen[MLP])
    assert equal(mlp.down_proj(seen[down + ":input"]), seen[down])
    assert equal(seen[down], seen[MLP])


def test_one_path_may_be_given_as_a_text(model):
    with intercept(model, MLP) as seen:
        model(IDS)
    assert list(seen) == [MLP]


def test_reading_does_not_change_the_output(model):
    paths = [f"model.layers.{layer}.{part}" for layer in range(4)
             for part in ("self_attn", "self_attn.q_proj", "mlp", "mlp.down_proj")]
    with intercept(model, [*paths, "model.embed_tokens", "model.norm"], keep_inputs=paths) as seen:
        inside = model(IDS)
    assert equal(inside, model(IDS)) and len(seen) == 2 * len(paths) + 2


def test_replace_changes_the_output_and_keep_sees_it_replaced(model):
    with intercept(model, keep=[MLP], replace={MLP: lambda out: out * 0}) as seen:
        inside = model(IDS)
    assert not np.array(seen[MLP]).any()
    model.layers[1].mlp.down_proj.weight *= 0
    assert equal(inside, model(IDS))


def test_replace_at_positions_leaves_the_others(model):
    for positions, chosen in ((2, [2]), ([0, 3], [0, 3]), (slice(3, None), [3, 4]), (-1, [4])):
        shapes = []

        def ones(out, shapes=shapes):
            shapes.append(out.shape)
            return mx.ones_like(out)

        with intercept(model, MLP) as before:
            model(IDS)
        with intercept(model, MLP, {MLP: ones}, positions=positions) as after:
            model(IDS)
        assert shapes == [(2, len(chosen), 32)]
        others = [t for t in range(5) if t not in chosen]
        old, new = np.array(before[MLP]), np.array(after[MLP])
        assert (new[:, chosen] == 1).all() and equal(new[:, others], old[:, others])


def test_replaced_inputs_reach_the_module(model):
    down = MLP + ".down_proj"
    with intercept(model, MLP, replace_inputs={down: lambda x: x * 2}, positions=1) as doubled:
        model(IDS)
    with intercept(model, MLP) as plain:
        model(IDS)
    ratio = np.array(doubled[MLP]) / np.array(plain[MLP])
    np.testing.assert_allclose(ratio[:, 1], 2, rtol=1e-5)
    assert (ratio[:, [0, 2, 3, 4]] == 1).all()


def test_contexts_nest_and_the_inner_one_has_the_last_word(model):
    with intercept(model, replace={MLP: mx.ones_like}):
        with intercept(model, MLP, replace={MLP: lambda out: out * 3}) as inner:
            model(IDS)
        with intercept(model, MLP) as outer:
            model(IDS)
    with intercept(model, MLP) as plain:
        model(IDS)
    assert (np.array(inner[MLP]) == 3).all() and (np.array(outer[MLP]) == 1).all()
    assert not (np.array(plain[MLP]) == 1).any()


def test_classes_and_parameter_names_are_restored(model):
    before, names = classes(model), [name for name, _ in model.named_modules()]
    with intercept(model, [MLP, "model.norm", "model.layers.0"]):
        assert classes(model) != before
        assert [name for name, _ in model.named_modules()] == names
    assert classes(model) == before


def test_the_model_is_restored_after_an_error(model):
    before, expected = classes(model), model(IDS)

    def fails(out):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), intercept(model, replace={MLP: fails}):
        model(IDS)
    assert classes(model) == before and equal(model(IDS), expected)


def test_an_unknown_path_is_refused_and_nothing_stays_hooked(model):
    before = classes(model)
    for path, said in (("model.layers.9.mlp", "no module 'model.layers.9.mlp'.*has no '9'"),
                       ("model.layers.1.moe", "model.layers.1 has no 'moe'"),
                       ("encoder", "the model has no 'encoder'"),
                       ("model.norm.weight", "model.norm has no 'weight'"),
                       ("model.layers", "a list of modules")):
        with pytest.raises(RomeError, match=said), intercept(model, [MLP, path]):
            pass
    assert classes(model) == before


def test_gradients_pass_through_kept_and_replaced_modules(model):
    def loss(delta):
        with intercept(model, replace={MLP: lambda out: out + delta}, positions=2):
            return mx.logsumexp(model(IDS)[:, -1])

    delta = 0.1 * mx.random.normal((32,), key=mx.random.key(1))
    gradient, direction = mx.grad(loss)(delta), mx.random.normal((32,), key=mx.random.key(2))
    step = 1e-2
    slope = (loss(delta + step * direction) - loss(delta - step * direction)) / (2 * step)
    assert abs((gradient * direction).sum().item() / slope.item() - 1) < 1e-2


def test_parameters_get_the_gradients_they_get_without_hooks(model):
    def loss(model):
        return mx.logsumexp(model(IDS)[:, -1])

    plain = nn.value_and_grad(model, loss)(model)[1]
    with intercept(model, MLP):
        hooked = nn.value_and_grad(model, loss)(model)[1]
    one, other = plain["model"]["layers"][1]["mlp"], hooked["model"]["layers"][1]["mlp"]
    assert equal(one["down_proj"]["weight"], other["down_proj"]["weight"])
    assert np.array(one["down_proj"]["weight"]).any()


def test_quantized_modules_are_read_and_replaced(model):
    nn.quantize(model, group_size=32, bits=4)
    down, expected = MLP + ".down_proj", model(IDS)
    assert isinstance(find_module(model, down), nn.QuantizedLinear)
    with intercept(model, down, keep_inputs=[down]) as seen:
        assert equal(model(IDS), expected)
    assert seen[down + ":input"].shape == (2, 5, 64)
    with intercept(model, replace={down: lambda out: out * 0}):
        assert not equal(model(IDS), expected)
    assert type(find_module(model, down)) is nn.QuantizedLinear
