"""Many prompts asked at once give what each gives alone."""

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

from rome_mlx.models.architectures import ARCHITECTURES
from rome_mlx.models.probabilities import (
    chosen_log_probabilities,
    first_choice,
    log_probabilities,
    said,
    target_probabilities,
    token_scores,
)
from rome_mlx.models.tokens import encode

PROMPTS = ["ab", "The tower is in", "a cat sat on the mat and the dog", "b",
           "so it was said that nobody had ever been to the end of the road before"]


def texts_after(model, tokenizer, prompts, tokens):
    return [one.text for one in said(model, tokenizer, [(encode(tokenizer, prompt).ids, tokens)
                                                        for prompt in prompts])]


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_what_is_said_is_what_mlx_lm_generates(kind):
    model, tokenizer = tiny_model(kind), FakeTokenizer()
    rows = [encode(tokenizer, prompt).ids for prompt in PROMPTS]
    alone = [mlx_lm.generate(model, tokenizer, ids, max_tokens=5) for ids in rows]
    found = said(model, tokenizer, [(ids, 5) for ids in rows])
    if kind != "plamo3":  # which sees one token less with a cache, in mlx-lm itself
        assert [one.text for one in found] == alone
    likeliest = [int(mx.argmax(model(mx.array([ids]))[0, -1])) for ids in rows]
    assert [one.first for one in found] == likeliest
    assert [first_choice(model, tokenizer, prompt) for prompt in PROMPTS] == likeliest


def test_what_is_said_ends_where_the_text_ends():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    whole, = texts_after(model, tokenizer, ["ab"], 9)
    tokenizer.eos_token = whole[-1]
    cut, = texts_after(model, tokenizer, ["ab"], 9)
    assert cut == whole[:whole.index(whole[-1])] != whole


def test_what_is_really_said_is_what_mlx_lm_generates(default_model):
    model, tokenizer = default_model
    prompts = ["The Eiffel Tower is located in the city of", "Once upon a time",
               "The capital of France is"]
    alone = [mlx_lm.generate(model, tokenizer, encode(tokenizer, prompt).ids, max_tokens=12)
             for prompt in prompts]
    assert texts_after(model, tokenizer, prompts, 12) == alone


def test_scores_are_those_of_the_models_own_forward_pass():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    pairs = [(prompt, target) for prompt in PROMPTS for target in ("xyz", "q", " two words")]
    found = token_scores(model, tokenizer, [*pairs, ("ab", 7)])
    for (prompt, target), tokens in zip(pairs, found, strict=False):
        text = prompt + " " + target.strip() if not target.startswith(" ") else prompt + target
        ids = tokenizer.encode(text)
        log_p = np.array(log_probabilities(model(mx.array([ids]))[0]), np.float64)
        length = len(tokenizer.encode(target.strip()))
        at = range(len(ids) - length, len(ids))
        np.testing.assert_allclose([nll for nll, _ in tokens], [-log_p[t - 1, ids[t]] for t in at],
                                   atol=1e-5)
        assert [right for _, right in tokens] == [log_p[t - 1].argmax() == ids[t] for t in at]
    (nll, _), = found[-1]
    logits = model(mx.array([tokenizer.encode("ab")]))[0, -1:]
    assert nll == pytest.approx(-chosen_log_probabilities(logits, [7]).item(), abs=1e-5)
    assert target_probabilities(model, tokenizer, [("ab", 7)])[0] == pytest.approx(np.exp(-nll))
