"""Noise is drawn as the released code draws it, at the level that the rule says."""

import numpy as np
import pytest
import recorded
from fakes import FakeTokenizer
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.tokens import encode
from rome_mlx.storage.places import read_lines
from rome_mlx.tracing.corruption import corruption

TOKENIZER = FakeTokenizer()


def noise_of(rule, model=None, **options):
    model = model or tiny_model("llama")
    return corruption(Decoder(model), TOKENIZER, rule, **options).noise(4, 5, 32)


def test_a_level_scales_the_released_codes_gaussian_noise():
    expected = np.random.RandomState(1).randn(4, 5, 32) * 0.35
    assert np.array_equal(noise_of("0.35"), expected)
    assert np.array_equal(noise_of(0.35), expected)


def test_uniform_noise_fills_the_level():
    assert np.array_equal(noise_of("u0.35"),
                          np.random.RandomState(1).uniform(-1, 1, (4, 5, 32)) * 0.35)


def test_s_is_times_the_pooled_deviation_of_the_subjects_embeddings():
    model, subjects = tiny_model("llama"), ["Rome", "The Eiffel Tower"]
    table = np.array(model.model.embed_tokens.weight, np.float64)
    ids = [i for s in subjects for i in TOKENIZER.encode(s, add_special_tokens=False)]
    rule = corruption(Decoder(model), TOKENIZER, "s2.5", subjects=subjects)
    assert rule.level == pytest.approx(2.5 * table[ids].std(), rel=1e-9)
    own = corruption(Decoder(model), TOKENIZER, "s2.5")
    ids = [i for s in read_lines("subjects.txt")
           for i in TOKENIZER.encode(s, add_special_tokens=False)]
    assert own.level == pytest.approx(2.5 * table[ids].std(), rel=1e-9)


def test_m_has_the_mean_and_covariance_of_embeddings_on_text():
    model = tiny_model("llama")
    table = np.array(model.model.embed_tokens.weight, np.float64)
    text = "\n".join([*read_lines("neutral.txt"), *read_lines("subjects.txt")])
    rows = table[encode(TOKENIZER, text).ids]
    rule = corruption(Decoder(model), TOKENIZER, "m")
    np.testing.assert_allclose(rule.mean, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(rule.root @ rule.root.T, np.cov(rows.T), atol=1e-9)
    draws = rule.noise(4000, 5, 32).reshape(-1, 32)
    np.testing.assert_allclose(draws.mean(0), rows.mean(0), atol=0.05 * rows.std())
    assert np.abs(np.cov(draws.T) - np.cov(rows.T)).max() < 0.05 * rows.var()


def test_t_is_m_with_heavy_tails_by_token():
    chi = np.random.RandomState(2).chisquare(5, (4, 5, 1))
    np.testing.assert_allclose(noise_of("t5"), noise_of("m") * np.sqrt(3 / chi))


def test_noise_is_at_the_subjects_tokens_alone():
    decoder = Decoder(tiny_model("llama"))
    clean = decoder.embed([[3, 1, 4, 1, 5]])
    rule = corruption(decoder, TOKENIZER, "0.5")
    noisy = np.array(rule.apply(clean, 1, 3, 6))
    difference = noisy - np.array(clean)
    assert noisy.shape == (6, 5, 32) and not difference[:, [0, 3, 4]].any()
    np.testing.assert_allclose(difference[:, 1:3], rule.noise(6, 2, 32), atol=1e-6)
    instead = corruption(decoder, TOKENIZER, "0.5", replace=True).apply(clean, 1, 3, 6)
    np.testing.assert_allclose(np.array(instead)[:, 1:3], rule.noise(6, 2, 32), atol=1e-6)


@pytest.mark.parametrize("rule", ["", "x3", "s", "u", "t", "t2", "t1.5", "-1", "s-3", "3s", "nan",
                                  "inf", "m5", "s3 ", None, True, [3]])
def test_an_unknown_noise_rule_is_refused_with_the_choices(rule):
    with pytest.raises(RomeError, match=r"is unknown; choose from s3 .*u0\.35, m, t5"):
        noise_of(rule)


def test_the_default_models_level_is_the_known_subjects(default_model):
    known = recorded.read("traces.json")["noise_level"]
    model, tokenizer = default_model
    assert corruption(Decoder(model), tokenizer, "s3").level == pytest.approx(known, rel=0.01)
