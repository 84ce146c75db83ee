"""Values of several requests found as one batch."""

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.key import in_contexts, read_states
from rome_mlx.editing.step_rules import Ball
from rome_mlx.editing.value import mean_losses, optimize_values
from rome_mlx.models.decoder import Decoder

TEMPLATES = ["{}", "q r s. {}", "tu. {}"]
REQUESTS = [rm.EditRequest("ab {} lives in", "cde", "xy"),
            rm.EditRequest("{} was", "a long subject", "b"),
            rm.EditRequest("the home of {} is not far from", "f", "qrstu")]
#: a loss that the three requests reach after different numbers of steps
HP = rm.Hyperparameters(v_num_grad_steps=8, v_stop=6.2, v_lr=0.3)
BALL = rm.Hyperparameters(v_num_grad_steps=8, v_stop=6.2, v_lr=0.2, v_rule="ball")


def optimize(model, requests, part="hidden", hp=HP, **options):
    return optimize_values(Decoder(model), FakeTokenizer(), requests, TEMPLATES, 1, hp, part,
                           **options)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("part", ["mlp", "hidden"])
@pytest.mark.parametrize("rule", ["adam", "ball"])
def test_a_batch_finds_what_each_request_finds_alone(kind, part, rule):
    model = tiny_model(kind)
    hp = rm.Hyperparameters(v_num_grad_steps=6, v_lr=0.1, v_rule=rule)
    together = optimize(model, REQUESTS, part, hp)
    for request, value in zip(REQUESTS, together, strict=True):
        alone, = optimize(model, [request], part, hp)
        np.testing.assert_allclose(value.delta, alone.delta, atol=1e-4)
        np.testing.assert_allclose(value.initial, alone.initial, atol=1e-5)
        assert [x["total"] for x in value.losses] == pytest.approx(
            [x["total"] for x in alone.losses], abs=1e-4)


@pytest.mark.parametrize("hp", [HP, BALL], ids=["adam", "ball"])
def test_each_request_stops_at_a_loss_of_its_own(hp):
    model = tiny_model("llama")
    values = optimize(model, REQUESTS, hp=hp)
    steps = [len(v.losses) for v in values]
    assert len(set(steps)) > 1, "the requests of this test should stop at different steps"
    for request, value in zip(REQUESTS, values, strict=True):
        alone, = optimize(model, [request], hp=hp)
        assert len(value.losses) == len(alone.losses)
        np.testing.assert_allclose(value.delta, alone.delta, atol=1e-4)
        assert value.losses[-1]["total"] < hp.v_stop or len(value.losses) == hp.v_num_grad_steps


def test_the_ball_is_descended_by_directions_and_along_its_surface():
    """The rule of one request in numpy, as its docstring says it."""
    random = np.random.default_rng(0)
    slope = random.normal(size=6)  # every gradient leads the same way, and out of the ball
    gradients = slope + 0.3 * random.normal(size=(5, 6))
    rule, delta, length, before = Ball(0.9), np.zeros(6), 0.9, np.zeros(6)
    radius, on_surface = 2.0, []
    for gradient in gradients:
        given = (mx.array(x[None], mx.float32) for x in (delta, gradient, np.array([radius])))
        found = np.array(rule.step(*given), np.float64)[0]
        out = delta / max(np.linalg.norm(delta), 1e-30)
        leaves = np.linalg.norm(delta) > 0.98 * radius and gradient @ out < 0
        on_surface.append(leaves)
        cut = np.eye(6) - leaves * np.outer(out, out)
        direction = cut @ (cut @ gradient / np.linalg.norm(cut @ gradient) + 0.3 * before)
        delta = delta - length * radius * direction / np.linalg.norm(direction)
        np.testing.assert_allclose(found, delta, atol=1e-5)
        delta *= min(1, radius / np.linalg.norm(delta))
        length, before = 0.8 * length, direction
    assert any(on_surface) and not all(on_surface)


def test_more_requests_than_a_batch_holds_are_all_optimised(monkeypatch):
    monkeypatch.setattr("rome_mlx.editing.value.AT_ONCE", 2)
    model = tiny_model("llama")
    values = optimize(model, REQUESTS)
    alone, = optimize(model, REQUESTS[2:])
    assert len(values) == 3
    np.testing.assert_allclose(values[2].delta, alone.delta, atol=1e-4)


def test_the_clamp_holds_for_every_request():
    hp = rm.Hyperparameters(clamp_norm_factor=0.3, v_num_grad_steps=5)
    for value in optimize(tiny_model("llama"), REQUESTS, hp=hp):
        norm, bound = np.linalg.norm(value.delta), 0.3 * np.linalg.norm(value.initial)
        assert norm == pytest.approx(bound, rel=1e-4)  # the steps are long enough to reach it


@pytest.mark.parametrize("rule", ["adam", "ball"])
def test_the_radius_is_of_the_bare_prompt_or_of_all_contexts(rule):
    model, request = tiny_model("llama"), REQUESTS[0]
    texts = in_contexts(request, TEMPLATES)
    norms = np.linalg.norm(read_states(Decoder(model), FakeTokenizer(), texts, 1), axis=1)
    hp = rm.Hyperparameters(v_rule=rule, v_num_grad_steps=2, v_lr=9.0, clamp_norm_factor=0.5)
    value, = optimize(model, [request], hp=hp)
    scale = {"adam": norms[0], "ball": norms.mean()}[rule]
    assert np.linalg.norm(value.delta) == pytest.approx(0.5 * scale, rel=1e-4)


def test_the_blocks_initial_value_is_the_models_own():
    model = tiny_model("llama")
    states = read_states(Decoder(model), FakeTokenizer(),
                         [(r.text, r.subject_span) for r in REQUESTS], 1)
    for value, state in zip(optimize(model, REQUESTS), states, strict=True):
        np.testing.assert_allclose(value.initial, state, atol=1e-5)


def test_the_report_is_the_mean_over_requests():
    seen = []
    values = optimize(tiny_model("llama"), REQUESTS, report=seen.append)
    assert seen == mean_losses(values)
    assert seen[0]["nll"] == pytest.approx(np.mean([v.losses[0]["nll"] for v in values]))


def test_the_loss_is_that_of_the_edited_model():
    model, tokenizer, layer = tiny_model("llama"), FakeTokenizer(), 1
    request = REQUESTS[0]
    hp = rm.Hyperparameters(v_num_grad_steps=2, v_lr=0.3)
    value, = optimize_values(Decoder(model), tokenizer, [request], ["{}"], layer, hp, "hidden")

    def nll(delta):
        ids = tokenizer.encode(request.text + " " + request.target_new)
        end = len(tokenizer.encode(request.text[:6])) - 1  # the subject's last letter
        count = len(request.target_new)

        def add(out):
            out[:, end] += mx.array(delta.astype(np.float32))
            return out

        with rm.intercept(model, replace={f"model.layers.{layer}": add}):
            logits = model(mx.array([ids]))[0, -count - 1:-1]
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return -np.mean([log_p[i, t].item() for i, t in enumerate(ids[-count:])])

    assert value.losses[0]["nll"] == pytest.approx(nll(0 * value.delta), abs=1e-4)
    assert value.losses[1]["nll"] == pytest.approx(nll(value.delta), abs=1e-4)
