"""Estimates are right to first order, count no path twice, and say what they are."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from oracles import Traced
from samples import EXACT, arrays, needs_many_rows
from saved_model import save_tiny
from scipy.special import expit, logit
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.tokens import encode
from rome_mlx.tracing.attribution import Estimates, checked
from rome_mlx.tracing.gradients import Gradients
from rome_mlx.tracing.restore import window_cells
from rome_mlx.tracing.trace import FactRuns
from rome_mlx.view.plot import plot_trace, terminal_map

TOKENIZER = FakeTokenizer()  # a letter a token
FACT = rm.Fact("ab {} cd", "xyz")  # the subject's tokens are [3, 6) of 9
LITTLE = 5e-4  # noise in which a second order is a hundredth of the first


def estimated(model, fact=FACT, **options):
    return rm.attribution(model, TOKENIZER, fact, **{"samples": 2, "noise": "0.5", **options})


def effects(trace) -> np.ndarray:
    """(tokens, layers) change of the answer's log odds, of a trace with one sample."""
    return logit(trace.scores.astype(np.float64)) - logit(trace.corrupted_prob)


def direct(model, kind: str, window: int, fact=FACT) -> np.ndarray:
    """The same from whole runs of the model, one a cell, with little noise."""
    encoded = encode(TOKENIZER, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    noise = np.random.RandomState(1).randn(1, end - begin, Decoder(model).dim) * LITTLE
    runs = Traced(model, encoded.ids, begin, noise, False)
    corrupted = runs.probability(runs.corrupted_logits).astype(np.float64)
    cells = runs.map(range(len(encoded.ids)), kind, window).mean(-1)
    return logit(cells.astype(np.float64)) - logit(corrupted)


def apart(one, other) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("kind, window", [
    ("hidden", 1), *((kind, w) for kind in ("mlp", "attn") for w in (1, 2, 3, 6))])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gptj", "granite"])
def test_estimates_are_finite_differences_of_direct_runs(model_type, kind, window):
    model = tiny_model(model_type)
    found = estimated(model, kind=kind, window=window, samples=1, noise=LITTLE)
    assert apart(effects(found), direct(model, kind, window)) < 0.05


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attn"])
@pytest.mark.parametrize("fact", [rm.Fact("{} cd", "xyz"), rm.Fact("ab {}", "xyz"),
                                  rm.Fact("{}", "xy"), rm.Fact("{}", "x")], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_a_subject_anywhere_gives_finite_differences(model_type, fact, kind):
    model = tiny_model(model_type)
    found = estimated(model, fact, kind=kind, window=2, samples=1, noise=LITTLE)
    assert apart(effects(found), direct(model, kind, 2, fact)) < 0.05


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_windows_estimate_is_not_the_sum_of_its_layers(model_type, kind):
    """The sum takes paths through outputs that are replaced as well."""
    model = tiny_model(model_type)
    options = dict(kind=kind, samples=1, noise=LITTLE)
    alone = effects(estimated(model, window=1, **options))
    sums = np.stack([alone[:, slice(*cell.restored)].sum(axis=1) for cell in window_cells(4, 3)],
                    axis=1)
    exact = direct(model, kind, 3)
    assert apart(sums, exact) > 0.15 > 3 * apart(effects(estimated(model, window=3, **options)),
                                                 exact)


def test_the_estimate_of_nothing_changed_is_nothing():
    found = rm.attributions(tiny_model("llama"), TOKENIZER, FACT, samples=2, noise=0)
    for trace in found.values():
        np.testing.assert_allclose(trace.scores, trace.clean_prob, rtol=1e-5)


def test_a_4_bit_model_is_estimated_as_it_is():
    model = tiny_model("llama", intermediate_size=64)
    nn.quantize(model, group_size=32, bits=4)
    found = estimated(model, kind="mlp", window=2, samples=1, noise=LITTLE)
    assert apart(effects(found), direct(model, "mlp", 2)) < 0.05


def test_a_bfloat16_model_is_estimated_too():
    model = tiny_model("llama")
    wide = estimated(model, kind="mlp", window=2).scores
    model.set_dtype(mx.bfloat16)
    np.testing.assert_allclose(estimated(model, kind="mlp", window=2).scores, wide, atol=0.1)


def test_all_kinds_come_from_one_backward_pass(monkeypatch):
    model, passes = tiny_model("llama"), []
    whole = Gradients.__init__

    def counted(self, *args):
        passes.append(1)
        whole(self, *args)

    monkeypatch.setattr(Gradients, "__init__", counted)
    together = rm.attributions(model, TOKENIZER, FACT, samples=2, noise="0.5", window=2)
    assert list(together) == ["hidden", "mlp", "attn"] and len(passes) == 1
    for kind, trace in together.items():
        alone = estimated(model, kind=kind, window=2).scores
        np.testing.assert_allclose(trace.scores, alone, rtol=0, atol=0 if EXACT else 1e-6)


@pytest.mark.parametrize("token_range, tokens", [
    ("subject_last", [5]), ((2, 5), [2, 3, 4]), ((0, 2), [0, 1]), ((6, 9), [6, 7, 8])])
def test_a_token_range_has_the_full_maps_rows(token_range, tokens):
    model = tiny_model("llama")
    whole = estimated(model, kind="attn", window=2)
    some = estimated(model, kind="attn", window=2, token_range=token_range)
    assert some.positions == tokens
    np.testing.assert_allclose(some.scores, whole.scores[tokens], rtol=1e-5)
    np.testing.assert_allclose(some.deviations, whole.deviations[tokens], atol=1e-6)
    assert (whole.scores[:3] == np.float32(whole.corrupted_prob)).all()  # before the subject


def test_little_memory_takes_samples_one_by_one_and_gives_the_same_map():
    model = tiny_model("llama")
    options = dict(samples=3, noise="0.5")
    tight = Estimates(FactRuns(model, TOKENIZER, FACT, memory=1e-9, **options))
    wide = Estimates(FactRuns(model, TOKENIZER, FACT, **options))
    for kind in ("hidden", "mlp", "attn"):
        np.testing.assert_allclose(tight.trace(kind, 2, "all").scores,
                                   wide.trace(kind, 2, "all").scores, rtol=1e-4)
    assert [part.samples for part in tight._gradients] == [1, 1, 1]
    assert [part.samples for part in wide._gradients] == [3]


def test_of_wide_windows_every_second_is_computed_and_the_others_lie_between():
    model = tiny_model("llama", num_hidden_layers=8)
    runs = FactRuns(model, TOKENIZER, FACT, samples=1, noise="0.5")
    gradients = Gradients(runs.decoder, runs.clean, runs.corrupted, runs.answer)
    every = gradients.windows("mlp", window_cells(8, 10), range(6))[..., 0]
    scores = Estimates(runs).trace("mlp", 10, (3, 9)).scores
    computed = [0, 2, 4, 6, 7]
    np.testing.assert_allclose(scores[:, computed],
                               expit(gradients.log_odds + np.arcsinh(every[:, computed])),
                               rtol=1e-4)
    changes = np.sinh(logit(scores.astype(np.float64)) - gradients.log_odds)
    np.testing.assert_allclose(changes[:, 3], changes[:, [2, 4]].mean(axis=1), atol=1e-4)


def test_the_model_is_left_bit_identical():
    model = tiny_model("gemma2")
    before, classes = arrays(model), [type(m) for m in model.modules()]
    rm.attributions(model, TOKENIZER, FACT, samples=2, noise="0.5", window=2)
    after = arrays(model)
    assert [type(m) for m in model.modules()] == classes
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("options, said", [
    (dict(kind="neuron"), "'neuron' is unknown"), (dict(samples=0), "samples is 0"),
    (dict(window=0), "window is 0"), (dict(token_range=(5, 5)), "holds no token")])
def test_values_out_of_range_are_refused(options, said):
    with pytest.raises(rm.RomeError, match=said):
        estimated(tiny_model("llama"), **options)


# what is recomputed, and what is said of it

def test_the_cells_that_matter_are_exact_and_the_miss_is_told():
    model = tiny_model("llama", num_hidden_layers=8)
    runs = FactRuns(model, TOKENIZER, FACT, samples=2, noise="0.5")
    estimate, exact = Estimates(runs).trace("mlp", 2, "all"), runs.trace("mlp", 2, None, "all")
    found = checked(runs, estimate)
    at = tuple(np.array(found.cells).T)
    np.testing.assert_allclose(found.trace.scores[at], exact.scores[at], atol=1e-6)
    np.testing.assert_allclose(found.missed, np.abs(estimate.scores - exact.scores)[at], atol=1e-6)
    assert found.missed.max() > 1e-3  # there was something to mend
    rest = np.ones(estimate.scores.shape, bool)
    rest[at] = False
    assert (found.trace.scores[rest] == estimate.scores[rest]).all()
    assert found.before in found.cells and not found.trace.exact

    row = int(estimate.scores[5].argmax())
    assert {(5, layer) for layer in (row - 1, row, row + 1) if 0 <= layer < 8} <= set(found.cells)
    assert 3 <= len(found.cells) <= 3 + 3 and len(found.cells) == len(found.missed)
    assert f"{len(found.cells)} cells recomputed" in found.told
    assert f"at most {found.missed.max():.3f}" in found.told

    np.testing.assert_allclose(found.trace.deciding, exact.deciding, atol=1e-6)
    assert found.trace.decision == exact.decision
    assert estimate.decision.reason.startswith("by an estimate, ")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model")
    return tmp_path


@needs_many_rows
def test_trace_fast_says_that_it_is_an_estimate_and_what_it_missed(here, capsys):
    command = ["trace", "--prompt", "{} is in", "--subject", "Oslo", "--model", "model", "--kind",
               "mlp", "--window", "2", "--json", "out.json"]
    assert main([*command, "--fast", "--plot", "map.png"]) == 0
    shown, found = capsys.readouterr().out, json.loads((here / "out.json").read_text())
    assert found["exact"] is False and np.shape(found["scores"]) == (10, 4)
    assert found["recomputed"]["largest_error"] >= found["recomputed"]["mean_error"] >= 0
    assert "cells recomputed exactly: the estimate was off by" in " ".join(shown.split())
    assert "samples, estimated\n" in shown and (here / "map.png").exists()
    assert max(map(len, shown.splitlines())) <= 80
    assert main(command) == 0
    exact = json.loads((here / "out.json").read_text())
    assert exact["exact"] is True and "recomputed" not in exact
    for position, layer in found["recomputed"]["cells"]:
        assert found["scores"][position][layer] == pytest.approx(exact["scores"][position][layer],
                                                                 abs=1e-5)


def test_pictures_say_that_they_show_an_estimate(tmp_path):
    fast = estimated(tiny_model("llama"))
    assert "estimated" in terminal_map(fast)
    plot_trace(fast, tmp_path / "map.svg")
    drawn = (tmp_path / "map.svg").read_text()
    assert "<!-- estimated -->" in drawn
