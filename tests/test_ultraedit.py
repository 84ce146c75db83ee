"""UltraEdit against its formulas, on a tiny model."""

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.methods.ultraedit import Running

REQUESTS = [rm.EditRequest("{} is in", f"town {i}", target)
            for i, target in enumerate(["ab", "c", "def", "g"] * 4)]
PATH = "model.layers.1.mlp.down_proj"


def mean_loss(model, requests):
    """The targets' mean NLL a token, all tokens of all requests alike, by whole passes."""
    losses = []
    for request in requests:
        prompt = FakeTokenizer().encode(f"{request.text} ")
        ids = FakeTokenizer().encode(f"{request.text} {request.target_new}")
        logits = model(mx.array([ids]))[0]
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        losses += [-log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids))]
    return sum(losses) / len(losses)


def released(model, rate):
    """{layer 1: ΔW} step by step as the released code has it, gradients from whole passes."""
    down, keys, gradients = model.layers[1].mlp.down_proj, [], []
    running, parts = Running(), []
    for i in range(0, len(REQUESTS), 10):
        chunk, h, g = REQUESTS[i: i + 10], [], []
        whole = mean_tokens(chunk)
        for request in chunk:
            prompt = FakeTokenizer().encode(f"{request.text} ")
            ids = FakeTokenizer().encode(f"{request.text} {request.target_new}")
            for position in range(len(prompt), len(ids)):
                key, gradient = at(model, down, ids, len(prompt), position - 1)
                h.append(key)
                g.append(gradient / whole)
        running.update(np.concatenate([h, g], axis=1))
        parts.append((np.array(h), np.array(g)))
    keys, gradients = (np.concatenate(x) for x in zip(*parts, strict=True))
    normed = running.normalised(np.concatenate([keys, gradients], axis=1))
    ahead, back = normed[:, :keys.shape[1]], normed[:, keys.shape[1]:]
    values = -rate * (ahead**2).sum(axis=1, keepdims=True) * back
    return (np.linalg.inv(keys.T @ keys + np.eye(keys.shape[1])) @ keys.T @ values).T


def mean_tokens(requests):
    return sum(len(FakeTokenizer().encode(f"{r.text} {r.target_new}"))
               - len(FakeTokenizer().encode(f"{r.text} ")) for r in requests)


def at(model, down, ids, begin, position):
    """(h, gradient of the summed loss at the output) of one position, by a bias there alone."""
    seen, call = [], type(down).__call__

    def loss(extra):
        class Moved(type(down)):
            def __call__(self, x):
                seen.append(x)
                mask = (mx.arange(x.shape[1]) == position)[None, :, None]
                return call(self, x) + mask * extra

        down.__class__ = Moved
        logits = model(mx.array([ids]))[0]
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return -sum(log_p[i - 1, ids[i]] for i in range(begin, len(ids)))

    kind = type(down)
    try:
        gradient = mx.grad(loss)(mx.zeros(down.weight.shape[0]))
        loss(mx.zeros(down.weight.shape[0]))
    finally:
        down.__class__ = kind
    return np.array(seen[-1][0, position], np.float64), np.array(gradient, np.float64)


def test_the_update_is_that_of_the_released_code():
    model = tiny_model("llama")
    edit = rm.ultraedit(model, FakeTokenizer(), REQUESTS, [1], hyperparameters={"rate": 1e-3})
    found, = edit.deltas.values()
    expected = released(model, 1e-3)
    np.testing.assert_allclose((found.a @ found.b).T, expected, rtol=1e-3,
                               atol=1e-4 * np.abs(expected).max())
    assert edit.losses[0]["nll"] == pytest.approx(np.mean(
        [float(mean_loss(model, REQUESTS[:10])), float(mean_loss(model, REQUESTS[10:]))]),
        rel=1e-4)


def test_a_small_step_lowers_the_loss():
    model = tiny_model("llama")
    edit = rm.ultraedit(model, FakeTokenizer(), REQUESTS, hyperparameters={"rate": 1e-4})
    before = float(mean_loss(model, REQUESTS))
    assert edit.layers == [1, 2]  # of four, the last two but one
    with edit.applied(model):
        assert float(mean_loss(model, REQUESTS)) < before


def test_mean_and_deviation_run_over_batches_with_the_released_codes_variance():
    random = np.random.RandomState(0)
    parts, running = [random.randn(n, 3) + n for n in (4, 7, 5)], Running()
    n, mean, var = 0, np.zeros(3), np.zeros(3)
    for x in parts:
        running.update(x)
        delta = x.mean(0) - mean
        var = var + len(x) * x.var(0, ddof=1) + n * len(x) * delta**2 / (n + len(x))
        mean, n = mean + len(x) * delta / (n + len(x)), n + len(x)
    np.testing.assert_allclose(mean, np.concatenate(parts).mean(0))
    np.testing.assert_allclose(running.normalised(parts[0]),
                               (parts[0] - mean) / np.sqrt(var / (n - 1)), rtol=1e-5)
    other = Running()
    other.restore(running.arrays())
    np.testing.assert_array_equal(other.normalised(parts[1]), running.normalised(parts[1]))
    once = Running()
    once.update(parts[0][:1])
    assert np.isfinite(once.normalised(parts[0][:1])).all()


def test_a_sequence_shares_what_has_been_seen_and_keeps_it(tmp_path):
    def begun(directory):
        return rm.EditSequence(tiny_model("llama"), FakeTokenizer(), rm.ultraedit, [1],
                               hyperparameters={"rate": 1e-3}, directory=directory)

    with begun(tmp_path / "whole") as going:
        edits = list(going.write(REQUESTS, batch=4))
        whole, = going.edit().deltas.values()
    with begun(tmp_path / "parts") as going:
        next(going.write(REQUESTS, batch=4))
    with begun(tmp_path / "parts") as going:
        list(going.write(REQUESTS, batch=4))
        resumed, = going.edit().deltas.values()
    np.testing.assert_array_equal(whole.a @ whole.b, resumed.a @ resumed.b)
    assert len(edits) == 4
    alone = rm.ultraedit(tiny_model("llama"), FakeTokenizer(), REQUESTS[:4], [1],
                         hyperparameters={"rate": 1e-3})
    one, first = alone.deltas[PATH], edits[0].deltas[PATH]
    np.testing.assert_allclose(one.a @ one.b, first.a @ first.b, atol=1e-12)
