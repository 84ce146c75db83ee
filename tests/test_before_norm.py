"""Many facts at once where a norm follows the MLP, as in Gemma: the norm, turned round."""

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from samples import arrays, spd
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing import spread
from rome_mlx.editing.before_norm import before_norm, nearest, normed
from rome_mlx.editing.key import read_keys, read_states
from rome_mlx.editing.methods import METHODS
from rome_mlx.editing.value import optimize_values
from rome_mlx.models.architectures import ARCHITECTURES
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.weights import weight_shape

TOKENIZER = FakeTokenizer()
REQUESTS = [rm.EditRequest("ab {} lives in", "cde", "xy"),
            rm.EditRequest("{} was", "a long subject", "b"),
            rm.EditRequest("the home of {} is", "f", "qr")]
BARE = [(request.text, request.subject_span) for request in REQUESTS]
#: nothing but the values counts
FREE = {rm.memit: {"update_weight": 1e-6}, rm.emmet: {"ridge": 0.0, "moment_scale": 1.0},
        rm.alphaedit: {"threshold": 1e9, "regularization": 1e-6}}
NORMED = sorted(kind for kind, row in ARCHITECTURES.items() if row.mlp_norm)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of rms 1."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))


@pytest.fixture
def gain() -> np.ndarray:
    """As Gemma's: one number far above the rest, one that is none, one below 0."""
    gain = np.random.RandomState(0).uniform(0.5, 2, 12)
    gain[:3] = 50, 0, -1
    return gain


def test_what_a_norm_can_say_is_found_again(gain):
    random = np.random.RandomState(1)
    said, now = unit(random.randn(5, 12)), unit(random.randn(5, 12))
    np.testing.assert_allclose(gain * nearest(gain, gain * said, now), gain * said, atol=1e-2)


@pytest.mark.parametrize("times", [0.3, 0.9, 1.1, 5])
def test_of_what_a_norm_cannot_say_the_nearest_is_found(gain, times):
    random = np.random.RandomState(1)
    wanted, now = times * gain * unit(random.randn(5, 12)), unit(random.randn(5, 12))
    found = nearest(gain, wanted, now)
    np.testing.assert_allclose(np.mean(found**2, axis=1), 1)
    distance = np.linalg.norm(gain * found - wanted, axis=1)
    for size in (1e-3, 0.1, 1, 10):
        for _ in range(50):
            other = unit(found + size * random.randn(5, 12))
            assert (np.linalg.norm(gain * other - wanted, axis=1) > distance - 1e-3).all()


def test_where_nothing_is_missing_nothing_changes(gain):
    now = unit(np.random.RandomState(1).randn(3, 12))
    np.testing.assert_allclose(nearest(gain, gain * now, now), now, atol=1e-6)


@pytest.mark.parametrize("method", [rm.rome, rm.r_rome, rm.p_rome])
def test_a_rank_one_edit_reaches_its_value_without_making_the_output_longer(method):
    """The block gives what it would give with v* itself, which is several times as long."""
    model, request, layer = tiny_model("gemma2"), REQUESTS[0], 1
    decoder = Decoder(model)
    options = {"moments": {layer: spd(48)}, "context_templates": ["{}"],
               "hyperparameters": {"clamp_norm_factor": 6.0, "v_weight_decay": 0.0}}
    edit = method(model, TOKENIZER, request, layer, **options)
    found, = optimize_values(decoder, TOKENIZER, [request], ["{}"], layer, edit.hyperparameters)
    old = read_keys(decoder, TOKENIZER, BARE[:1], layer).outputs[0]
    target = found.initial + found.delta
    assert np.linalg.norm(target) > 2 * np.linalg.norm(old)
    norm = decoder.module(layer, "mlp_norm")
    with edit.applied(model):
        now = read_keys(decoder, TOKENIZER, BARE[:1], layer).outputs[0]
    assert np.linalg.norm(now) == pytest.approx(np.linalg.norm(old), rel=1e-3)
    np.testing.assert_allclose(normed(norm, now[None]), normed(norm, target[None]), atol=1e-3)


@pytest.mark.parametrize("kind", NORMED)
def test_the_norm_named_is_what_stands_between_the_mlp_and_the_stream(kind):
    decoder, random = Decoder(tiny_model(kind)), np.random.RandomState(0)
    states, said = mx.array(random.randn(1, 4, decoder.dim), mx.float32), random.randn(2, 1, 4, 32)
    for layer in decoder.dense_layers:
        norm, outs = decoder.module(layer, "mlp_norm"), []
        for one in said:
            with rm.intercept(decoder.model, replace={
                    decoder.path(layer, "mlp"): lambda out, one=one: mx.array(one, out.dtype)}):
                outs.append(np.array(decoder.block(layer, states)))
        added = normed(norm, said[1, 0]) - normed(norm, said[0, 0])
        np.testing.assert_allclose(outs[1][0] - outs[0][0], decoder.residual(layer) * added,
                                   atol=1e-4)
        gain = normed(norm, np.full((1, 32), 1e4))
        np.testing.assert_allclose(normed(norm, said[0, 0]), gain * unit(said[0, 0]), atol=1e-4)


def test_the_residual_before_the_norm_gives_what_is_missing_after_it():
    decoder = Decoder(tiny_model("gemma3_text"))
    norm = decoder.module(1, "mlp_norm")
    outputs, wanted = np.random.RandomState(0).randn(2, 3, 32)
    missing = normed(norm, wanted) - normed(norm, outputs)
    found = outputs + before_norm(norm, outputs, missing)
    np.testing.assert_allclose(normed(norm, found), normed(norm, wanted), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(outputs, axis=1))


@pytest.mark.parametrize("method", FREE)
def test_the_clamp_is_of_what_the_value_is_of(method):
    hp = {kind: METHODS[method.__name__].resolve(None, Decoder(tiny_model(kind)))
          for kind in ("llama", "gemma3_text")}
    assert hp["llama"].clamp_norm_factor == 0.75 and hp["gemma3_text"].clamp_norm_factor == 4


def written(model, method, layers, monkeypatch, **options):
    """(the edit, z, block outputs before and after it), of the bare prompts at the last layer."""
    found, goal, decoder = [], spread._goal, Decoder(model)

    def record(*args):
        found.append(goal(*args))
        return found[0]

    monkeypatch.setattr(spread, "_goal", record)
    monkeypatch.setattr("rome_mlx.editing.methods.alphaedit._MOST_ENERGY", 2.0)
    width = weight_shape(decoder.module(layers[0], "down"))[1]
    edit = method(model, TOKENIZER, REQUESTS, layers, moments={i: spd(width) for i in layers},
                  context_templates=["{}"],
                  hyperparameters={"v_num_grad_steps": 5, **FREE[method]}, **options)
    before = read_states(decoder, TOKENIZER, BARE, layers[-1])
    with edit.applied(model):
        return edit, found[0], before, read_states(decoder, TOKENIZER, BARE, layers[-1])


@pytest.mark.parametrize("kind", NORMED)
@pytest.mark.parametrize("method", FREE)
def test_an_edit_of_one_layer_computes_the_values(kind, method, monkeypatch):
    _, goal, before, after = written(tiny_model(kind), method, [1], monkeypatch)
    missing = np.linalg.norm(goal - before, axis=1)
    assert (missing > 0.1).all()
    assert (np.linalg.norm(goal - after, axis=1) <= 1e-3 * missing).all()


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo2"])
@pytest.mark.parametrize("method", FREE)
def test_an_edit_of_several_layers_comes_near_the_values(kind, method, monkeypatch):
    """No nearer than the last norm can say once the layers before it have moved what it adds to."""
    edit, goal, before, after = written(tiny_model(kind), method, [0, 1, 2], monkeypatch)
    missing, left = (np.linalg.norm(goal - x, axis=1) for x in (before, after))
    assert left.mean() < 0.25 * missing.mean() and len(edit.deltas) == 3


def test_computing_leaves_the_model_bit_for_bit(monkeypatch):
    model = tiny_model("gemma3_text")
    before = arrays(model)
    edit, *_ = written(model, rm.memit, [0, 1], monkeypatch)
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(change > 1e-3 for change in edit.norm_change(model).values())
