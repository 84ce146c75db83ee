"""What an edit does to other text, against whole forward passes in float64."""

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

from rome_mlx.evaluation import side_effects
from rome_mlx.evaluation.side_effects import drift, final_states, kept_states
from rome_mlx.models.kept import Kept

ROWS = [[5, 7, 9, 3], [4, 8, 1, 2, 6, 11, 3, 9, 12], [1, 2]]


def log_p(model, ids):
    logits = np.array(model(mx.array([ids])).astype(mx.float32), np.float64)[0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("at_once", [4, 128])
def test_the_drift_is_that_of_whole_runs(at_once, monkeypatch):
    monkeypatch.setattr(side_effects, "_ROWS", at_once)
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    other.model.embed_tokens = model.model.embed_tokens  # the vocabulary that both are read by
    other.model.norm = model.model.norm
    found = drift(model, ROWS, final_states(model, ROWS), final_states(other, ROWS))
    p, q = (np.concatenate([log_p(m, ids)[:-1] for ids in ROWS]) for m in (model, other))
    targets = np.concatenate([ids[1:] for ids in ROWS])
    assert found["tokens"] == len(targets) == 12
    assert found["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)
    assert found["first_choice_changed"] == pytest.approx(
        100 * np.mean(p.argmax(-1) != q.argmax(-1)))
    for name, x in (("perplexity_before", p), ("perplexity_after", q)):
        chosen = x[np.arange(len(targets)), targets]
        assert found[name] == pytest.approx(np.exp(-chosen.mean()), rel=1e-4)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_states_are_kept_to_the_last_bit_and_computed_once(dtype, monkeypatch):
    model = tiny_model("gemma3_text")
    model.set_dtype(dtype)
    plain, kept = final_states(model, ROWS), Kept(model, FakeTokenizer())
    for _ in range(2):
        found = kept_states(kept, model, ROWS)
        assert [x.dtype for x in found] == [dtype] * 3
        assert all(mx.array_equal(a, b) for a, b in zip(plain, found, strict=True))
        monkeypatch.setattr(side_effects, "final_states", None)
