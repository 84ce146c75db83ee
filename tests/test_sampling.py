"""What texts begin with, and the model's own samples: from its distribution, seeded."""

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from samples import needs_many_rows
from tiny import tiny_model

from rome_mlx.accel.linux_cpu import drawn, slow_exponentials
from rome_mlx.models import sampling
from rome_mlx.models.sampling import beginning, sample


def test_what_texts_begin_with_is_read_off_the_tokenizer():
    begins = FakeTokenizer(begins=True)
    assert beginning(FakeTokenizer()) == [] and beginning(begins) == [begins.bos_token_id]


def test_a_row_is_drawn_where_its_cumulated_probability_passes_the_number():
    p = np.array([[0.2, 0.0, 0.5, 0.3], [0.0, 1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        logits = mx.array(np.log(p) + np.array([[3.0], [-7.0]]), mx.float32)
    for numbers, expected in (([0.0, 0.0], [0, 1]), ([0.19, 0.5], [0, 1]), ([0.21, 0.7], [2, 1]),
                              ([0.69, 0.9], [2, 1]), ([0.71, 1 - 1e-16], [3, 1]),
                              ([1 - 1e-16, 0.1], [3, 1])):
        assert drawn(logits, np.array(numbers)).tolist() == expected


@needs_many_rows
@pytest.mark.parametrize("slow", [True, False])
def test_samples_follow_the_models_probabilities_without_the_banned(slow, monkeypatch):
    monkeypatch.setattr(sampling, "slow_exponentials", lambda: slow)
    model, rows, banned = tiny_model("llama"), 20_000, [0, 1, 40]
    logits = np.array(model(mx.array([[5]]))[0, -1], np.float64)
    logits[banned] = -np.inf
    p = np.exp(logits - logits.max())
    p /= p.sum()
    texts = sample(model, [[5]] * rows, 1, seeds=[3], avoid=banned)
    found = np.bincount(np.ravel(texts), minlength=len(p)) / rows
    assert found[banned].sum() == 0
    assert (np.abs(found - p) < 5 * np.sqrt(p / rows) + 1e-9).all()  # five standard errors


def test_the_same_seed_draws_the_same_and_every_token_is_told():
    model, told = tiny_model("llama"), []
    one = sample(model, [[5]] * 4, 9, seeds=[1], each=told.append)
    several = sample(model, [[5]] * 7, 9, seeds=[1, 2], rows=4)  # the last seed has three
    assert several[:4] == one
    if slow_exponentials():
        assert several[4:] == sample(model, [[5]] * 4, 9, seeds=[2])[:3]
    assert one == sample(model, [[5]] * 4, 9, seeds=[1]) != sample(model, [[5]] * 4, 9, seeds=[2])
    assert told == list(range(1, 10)) and {len(row) for row in one} == {9}
