"""Every method against the constraint that it must meet or the quantity that it must minimise."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx_lm.tuner.utils import linear_to_lora_layers
from samples import EXACT, spd
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.key import in_contexts, read_keys, read_states
from rome_mlx.editing.least_squares import LeastSquares
from rome_mlx.editing.methods.alphaedit import null_space
from rome_mlx.editing.methods.emmet import equality_update
from rome_mlx.editing.spread import request_keys
from rome_mlx.editing.value import optimize_values
from rome_mlx.models.decoder import Decoder

REQUESTS = [rm.EditRequest("ab {} lives in", "cde", "xy"),
            rm.EditRequest("{} was", "a long subject", "b")]
TEMPLATES = ["{}", "q r s. {}", "tu. {}"]
LAYER = 1


def size(update, matrix):
    """tr(ΔCΔᵀ), what an update does to other keys."""
    return np.trace(update @ matrix @ update.T)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("method", [rm.rome, rm.r_rome, rm.p_rome])
def test_rank_one_methods_write_the_value_where_they_say_as_gently_as_possible(kind, method):
    model, tokenizer, request = tiny_model(kind), FakeTokenizer(), REQUESTS[0]
    decoder = Decoder(model)
    readings = read_keys(decoder, tokenizer, in_contexts(request, TEMPLATES), LAYER)
    matrix = spd(readings.keys.shape[1])
    edit = method(model, tokenizer, request, LAYER, moments={LAYER: matrix},
                  context_templates=TEMPLATES)
    value, = optimize_values(decoder, tokenizer, [request], TEMPLATES, LAYER,
                             edit.hyperparameters)
    update = np.outer(edit.right_vector, edit.left_vector)

    written = readings.outputs + readings.keys @ update.T  # (contexts, d_out), edited
    written = written.mean(0) if method is rm.r_rome else written[0]
    np.testing.assert_allclose(written, value.initial + value.delta,
                               atol=1e-9 if EXACT else 1e-5)

    key = readings.keys.mean(0) if method is rm.r_rome else readings.keys[0]
    beside = np.eye(len(key)) - np.outer(key, key) / (key @ key)
    random = np.random.RandomState(0)
    others = [update + 0.1 * random.randn(*update.shape) @ beside for _ in range(20)]
    smallest = all(size(other, matrix) > size(update, matrix) for other in others)
    # ROME's own key and direction are of different contexts, which costs it the minimum
    gentle = np.outer(update @ key, np.linalg.solve(matrix, key))
    gentle /= key @ np.linalg.solve(matrix, key)
    if method is rm.rome:
        assert size(update, matrix) > size(gentle, matrix) * (1 + 1e-6)
    else:
        assert smallest
        np.testing.assert_allclose(update, gentle, atol=1e-9 * np.abs(gentle).max())


def naive(method, hp, matrix, keys, share):
    """Δ (d_out, d_in) by the papers' formulas, with plain inverses."""
    if method is rm.memit:
        return share @ keys.T @ np.linalg.inv(hp.update_weight * matrix + keys @ keys.T)
    if method is rm.emmet:
        inverse = np.linalg.inv(hp.moment_scale * matrix)
        gram = keys.T @ inverse @ keys + hp.ridge * np.eye(keys.shape[1])
        return share @ np.linalg.inv(gram) @ keys.T @ inverse
    values, vectors = np.linalg.eigh(matrix)
    hardly = vectors[:, np.cumsum(values) <= hp.energy * np.trace(matrix)]
    p = hardly @ hardly.T
    left = p @ keys @ keys.T + hp.regularization * np.eye(len(matrix))
    return np.linalg.solve(left, p @ keys @ share.T).T


@pytest.mark.parametrize("method", [rm.memit, rm.emmet, rm.alphaedit])
def test_each_layer_takes_its_share_with_the_layers_before_it_edited(method):
    model, tokenizer, layers = tiny_model("llama"), FakeTokenizer(), [0, 2, 3]
    decoder, bare = Decoder(model), [(r.text, r.subject_span) for r in REQUESTS]
    hp = {"v_num_grad_steps": 5} | ({"energy": 0.1} if method is rm.alphaedit else {})
    moments = {layer: spd(model.layers[layer].mlp.down_proj.weight.shape[1], layer)
               for layer in layers}
    edit = method(model, tokenizer, REQUESTS, layers, moments=moments, hyperparameters=hp,
                  context_templates=TEMPLATES)
    values = optimize_values(decoder, tokenizer, REQUESTS, TEMPLATES, 3, edit.hyperparameters,
                             "hidden")
    goal, before = np.stack([v.initial + v.delta for v in values]), []
    try:
        for i, (layer, (path, delta)) in enumerate(zip(layers, edit.deltas.items(), strict=True)):
            keys = request_keys(decoder, tokenizer, REQUESTS, TEMPLATES, layer).T
            share = (goal - read_states(decoder, tokenizer, bare, 3)) / (3 - i)
            expected = naive(method, edit.hyperparameters, moments[layer], keys, share.T)
            np.testing.assert_allclose(edit.keys[path], keys, atol=1e-5)
            np.testing.assert_allclose((delta.a @ delta.b).T, expected, rtol=1e-3,
                                       atol=1e-5 * np.abs(expected).max())
            before.append(rm.Edit(edit.method, REQUESTS, {path: delta}, [layer]))
            before[-1].apply(model)
    finally:
        for part in reversed(before):
            part.revert(model)


def test_emmet_with_a_ridge_is_memit_with_that_weight(system):
    matrix, keys, residual = system
    np.testing.assert_allclose(residual @ equality_update(keys, matrix, 0.1).T,
                               residual @ LeastSquares(0.1 * matrix).update(keys).T, rtol=1e-9)


def test_alphaedits_update_minimises_its_cost_in_the_null_space(system):
    matrix, keys, residual = system
    random = np.random.RandomState(3)
    earlier, weight = random.randn(12, 2), 0.7
    basis, _ = null_space(matrix, 0.1)
    equations = LeastSquares(weight * np.eye(basis.shape[1]), basis)
    equations.protect(earlier)
    best = residual @ equations.update(keys).T
    np.testing.assert_allclose(best @ basis @ basis.T, best, atol=1e-12)

    def cost(update):
        return (np.sum((update @ keys - residual)**2) + np.sum((update @ earlier)**2)
                + weight * np.sum(update**2))

    for _ in range(20):
        other = 1e-3 * random.randn(5, basis.shape[1]) @ basis.T
        assert cost(best + other) > cost(best)
        assert cost(best + other) == pytest.approx(cost(best - other), rel=1e-9)


def whole_loss(model):
    """The targets' mean NLL a token with teacher forcing, by the whole model."""
    losses = []
    for request in REQUESTS:
        ids = FakeTokenizer().encode(request.text + " " + request.target_new)
        count = len(request.target_new)
        logits = model(mx.array([ids[:-1]]))[0, -count:]
        losses.append(nn.losses.cross_entropy(logits, mx.array(ids[-count:])).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("clamp", [None, 3e-3])
def test_fine_tuning_is_adam_on_one_weight_projected_where_it_is_clamped(clamp):
    model, lr, steps = tiny_model("llama"), 1e-3, 6
    editor, hp = (rm.finetune, {}) if clamp is None else (rm.finetune_l, {"clamp": clamp})
    edit = editor(model, FakeTokenizer(), REQUESTS, LAYER,
                  hyperparameters={"lr": lr, "steps": steps, **hp})
    module, weight = model.layers[LAYER].mlp.down_proj, model.layers[LAYER].mlp.down_proj.weight

    def loss(w):
        module.weight = w
        return whole_loss(model)

    change, mean, square = (np.zeros(weight.shape) for _ in range(3))
    for step in range(1, steps + 1):
        gradient = np.array(mx.grad(loss)(weight + mx.array(change, dtype=mx.float32)), np.float64)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        change -= lr * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        if clamp is not None:
            change = np.clip(change, -clamp, clamp)
    delta, = edit.deltas.values()
    found = (delta.a @ delta.b).T
    assert np.linalg.norm(found - change) < 1e-3 * np.linalg.norm(change)
    if clamp is not None:
        assert (np.abs(found) > 0.999 * clamp).any(), "the clamp should bind in this test"


def test_lora_is_what_mlx_lms_own_layers_learn():
    model, layers, hp = tiny_model("llama"), [1, 3], {"lr": 1e-3, "steps": 5, "rank": 2,
                                                      "scale": 4.0}
    edit = rm.lora(model, FakeTokenizer(), REQUESTS, layers, hyperparameters=hp, seed=7)
    linear_to_lora_layers(model, 4, {"rank": 2, "scale": 4.0, "dropout": 0.0,
                                     "keys": list(edit.deltas)})
    model.freeze()
    adapters = [model.layers[layer].mlp.down_proj for layer in layers]
    for adapter, key in zip(adapters, mx.random.split(mx.random.key(7), 2), strict=True):
        adapter.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        shape = adapter.lora_a.shape
        adapter.lora_a = mx.random.uniform(-1, 1, shape, key=key) / shape[0]**0.5
    optimizer = optim.Adam(learning_rate=hp["lr"], bias_correction=True)
    for _ in range(hp["steps"]):
        _, gradients = nn.value_and_grad(model, whole_loss)(model)
        optimizer.update(model, gradients)
    for adapter, delta in zip(adapters, edit.deltas.values(), strict=True):
        expected = 4.0 * np.array(adapter.lora_a @ adapter.lora_b)
        assert np.linalg.norm(delta.a @ delta.b - expected) < 1e-3 * np.linalg.norm(expected)


def test_rome_updates_as_r_rome_where_the_bare_prompts_key_does_not_fit(monkeypatch):
    """A text's first token may have a key that is no subject's."""
    from rome_mlx.editing.methods import rome as module

    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    width = model.layers[1].mlp.down_proj.weight.shape[1]
    options = {"moments": {1: np.eye(width)}, "context_templates": ["{}", "so it was. {}"],
               "hyperparameters": {"v_num_grad_steps": 3}}
    request = rm.EditRequest("{} is in", "Oslo", "x")
    plain = rm.rome(model, tokenizer, request, 1, **options)
    assert plain.details == {}
    monkeypatch.setattr(module, "FIT", 1e9)
    mild = rm.rome(model, tokenizer, request, 1, **options)
    other = rm.r_rome(model, tokenizer, request, 1, **options)
    assert mild.details["fit"] > 0
    np.testing.assert_array_equal(mild.right_vector, other.right_vector)
    assert not np.allclose(mild.right_vector, plain.right_vector)
    key, mean = np.array([[1.0, 0], [0, 2]]), np.array([[2.0, 5], [0, 1]])
    np.testing.assert_allclose(module.fit(key, mean, np.array([[1.0, 0], [0, 3]])), [0.5, 2])
