"""The staircase of restored cells gives what restoring them one by one gives."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import recorded
from fakes import FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from oracles import Traced
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.facts import Fact
from rome_mlx.models.architectures import ARCHITECTURES
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.tokens import encode
from rome_mlx.tracing.corruption import corruption
from rome_mlx.tracing.decision import scaled_window
from rome_mlx.tracing.trace import trace

TOKENIZER = FakeTokenizer()  # a letter a token
FACT = Fact("ab {} cd", "xyz")  # the subject's tokens are [3, 6) of 9
SAMPLES = 3


def traced(model, fact=FACT, **options):
    return trace(model, TOKENIZER, fact, samples=SAMPLES, **{"noise": "0.5", **options})


def oracle(model, fact=FACT, noise="0.5", replace=False, seed=1) -> Traced:
    rule = corruption(Decoder(model), TOKENIZER, noise, replace=replace)
    encoded = encode(TOKENIZER, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    return Traced(model, encoded.ids, begin,
                  rule.noise(SAMPLES, end - begin, Decoder(model).dim, seed), replace)


def assert_same(found, direct: Traced, tokens=range(9), **options):
    """Every number of a trace is what direct full runs give, to 1e-5, and cells do matter."""
    kind, window = options.get("kind", "hidden"), options.get("window", 10)
    cells = direct.map(tokens, kind, window, options.get("severed"))
    np.testing.assert_allclose(found.scores, cells.mean(-1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.deviations, cells.std(-1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.by_sample, cells, rtol=0, atol=1e-5)
    corrupted = direct.probability(direct.corrupted_logits).mean()
    assert abs(found.corrupted_prob - corrupted) < 1e-5
    assert abs(found.clean_prob - direct.probability(direct.clean_logits)[0]) < 1e-5
    assert found.answer_id == direct.answer and found.positions == list(tokens)
    assert np.ptp(cells.mean(-1)) > 3e-4  # cohere scales its logits down


# against direct runs

@pytest.mark.parametrize("kind", ["hidden", "mlp", "attn"])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_cell_equals_a_direct_run(model_type, kind):
    model = tiny_model(model_type)
    assert_same(traced(model, kind=kind, window=2), oracle(model), kind=kind, window=2)


@pytest.mark.parametrize("window", [1, 3, 4, 10])
@pytest.mark.parametrize("kind", ["mlp", "attn"])
def test_every_window_equals_a_direct_run(kind, window):
    model = tiny_model("llama", num_hidden_layers=6)
    assert_same(traced(model, kind=kind, window=window), oracle(model), kind=kind, window=window)


@pytest.mark.parametrize("kind, severed", [
    ("hidden", "mlp"), ("hidden", "attn"), ("mlp", "attn"), ("attn", "mlp")])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_severed_paths_equal_direct_runs(model_type, kind, severed):
    model = tiny_model(model_type)
    options = dict(kind=kind, severed=severed, window=2)
    found = traced(model, **options)
    assert_same(found, oracle(model), **options)
    whole = traced(model, kind=kind, window=2)
    assert np.abs(found.scores - whole.scores).max() > 1e-3  # severing matters


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("noise", ["s3", "0.35", "u0.35", "m", "t5"])
def test_every_corruption_equals_a_direct_run(noise, replace):
    model = tiny_model("llama")
    assert_same(traced(model, kind="mlp", window=2, noise=noise, replace=replace),
                oracle(model, noise=noise, replace=replace), kind="mlp", window=2)


def test_a_noise_seed_gives_its_own_noise():
    model = tiny_model("llama")
    found = traced(model, noise_seed=7)
    assert_same(found, oracle(model, seed=7))
    assert found.corrupted_prob != traced(model).corrupted_prob


@pytest.mark.parametrize("fact, tokens", [
    (Fact("{} cd", "xyz"), 6), (Fact("ab {}", "xyz"), 6), (Fact("a {} b", "x"), 5),
    (Fact("{}", "xyz"), 3), (Fact("ab {} cd and so on, and on", "xyz"), 27)])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_a_subject_anywhere_equals_direct_runs(model_type, fact, tokens):
    model = tiny_model(model_type)
    assert_same(traced(model, fact), oracle(model, fact), range(tokens))


def test_intervals_hold_the_means_over_samples():
    model = tiny_model("llama")
    found = traced(model, kind="mlp", window=scaled_window(4))
    low, high = np.moveaxis(found.intervals, -1, 0)
    assert (low <= found.scores + 1e-6).all() and (found.scores <= high + 1e-6).all()
    assert (high - low)[found.deviations > 1e-4].min() > 0
    np.testing.assert_array_equal(found.deciding_intervals, found.intervals[5])
    assert traced(model).deciding_intervals is None


@pytest.mark.parametrize("token_range, tokens", [
    ("subject_last", [5]), ((2, 5), [2, 3, 4]), ((0, 1), [0]), ((5, 9), [5, 6, 7, 8]),
    ((-2, 9), [7, 8])])
def test_a_token_range_has_the_full_maps_rows(token_range, tokens):
    model = tiny_model("llama")
    found, whole = traced(model, token_range=token_range), traced(model)
    assert found.positions == tokens and found.scores.shape == (len(tokens), 4)
    np.testing.assert_allclose(found.scores, whole.scores[tokens], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind, severed", [("hidden", "mlp"), ("mlp", None)])
@pytest.mark.parametrize("memory", [1e-9, 1e-4, 1.5e-4])
def test_little_memory_gives_the_same_map(memory, kind, severed):
    model = tiny_model("llama")
    options = dict(kind=kind, severed=severed, window=2)
    found = traced(model, memory=memory, **options)
    np.testing.assert_allclose(found.scores, traced(model, **options).scores, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_trace_equals_direct_runs(data):
    model = tiny_model(data.draw(st.sampled_from(["llama", "gpt2", "gemma2", "gemma3_text",
                                                  "gptj", "olmo2", "granite"])))
    before, subject, after = (data.draw(st.text("abc", min_size=least, max_size=4))
                              for least in (0, 1, 0))
    fact = Fact(before + "{}" + after, subject)
    tokens = len(before + subject + after)
    kind = data.draw(st.sampled_from(["hidden", "mlp", "attn"]))
    severed = data.draw(st.sampled_from([None, *({"mlp", "attn"} - {kind})]))
    window = data.draw(st.integers(1, 6))
    corrupt = dict(noise=data.draw(st.sampled_from(["s3", "0.5", "u0.7", "m", "t5"])),
                   replace=data.draw(st.booleans()))
    seed = data.draw(st.integers(0, 9))
    first = data.draw(st.integers(0, tokens - 1))
    chosen = range(first, data.draw(st.integers(first + 1, tokens)))
    found = traced(model, fact, kind=kind, severed=severed, window=window, noise_seed=seed,
                   token_range=(chosen.start, chosen.stop),
                   memory=data.draw(st.sampled_from([1e-9, 2e-5, 1.0])), **corrupt)
    direct = oracle(model, fact, seed=seed, **corrupt).map(chosen, kind, window, severed)
    np.testing.assert_allclose(found.scores, direct.mean(-1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.deviations, direct.std(-1), rtol=0, atol=1e-5)


def test_a_4_bit_model_is_traced_as_it_is():
    model = tiny_model("llama", intermediate_size=64)
    nn.quantize(model, group_size=32, bits=4)
    assert_same(traced(model, kind="mlp", window=2), oracle(model), kind="mlp", window=2)


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attn"])
def test_tracing_leaves_the_model_bit_identical(kind):
    model = tiny_model("llama")
    before = {name: np.array(w) for name, w in tree_flatten(model.parameters())}
    classes, output = [type(m) for m in model.modules()], np.array(model(mx.array([[1, 2, 3]])))
    traced(model, kind=kind, severed="mlp" if kind == "hidden" else None)
    assert [type(m) for m in model.modules()] == classes
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == before.keys()
    assert all(np.array_equal(np.array(after[name]), before[name]) for name in before)
    assert np.array_equal(np.array(model(mx.array([[1, 2, 3]]))), output)


def test_restoring_the_last_hidden_state_gives_the_clean_answer():
    found = traced(tiny_model("llama"))
    assert abs(found.scores[-1, -1] - found.clean_prob) < 1e-6
    assert (found.scores[:3] == np.float32(found.corrupted_prob)).all()  # before the subject


# what a trace says

@pytest.mark.parametrize("options, said", [
    (dict(kind="neuron"), "'neuron' is unknown; choose from hidden, mlp, attn"),
    (dict(severed="hidden"), "'hidden' is unknown; choose mlp or attn"),
    (dict(kind="mlp", severed="mlp"), "cannot be what is restored"),
    (dict(samples=0), "samples is 0; give 1 or more"), (dict(window=0), "window is 0"),
    (dict(window=-3), "window is -3"),
    *[(dict(token_range=r), "holds no token; give all, subject_last")
      for r in ("last", (5, 5), (6, 3), (100, 200), 7, (1, 2, 3), ("a", "b"))],
])
def test_values_out_of_range_are_refused(options, said):
    with pytest.raises(RomeError, match=said):
        trace(tiny_model("llama"), TOKENIZER, FACT, **{"samples": 2, "noise": "0.5", **options})


def test_a_trace_names_its_effects_and_writes_them_as_json():
    found = traced(tiny_model("llama"), kind="mlp", window=2)
    said = json.loads(json.dumps(found.to_json()))
    assert said["input_ids"] == TOKENIZER.encode("ab xyz cd")
    assert said["tokens"] == list("ab xyz cd")
    assert said["subject_range"] == [3, 6] and said["token_range"] == "all"
    assert said["noise_level"] == 0.5 and said["samples"] == SAMPLES and said["severed"] is None
    assert np.shape(said["scores"]) == (9, 4) and said["decisive_layer"] == found.decisive_layer
    effect = found.scores - found.corrupted_prob
    np.testing.assert_allclose(found.indirect_effect, effect)
    total = found.clean_prob - found.corrupted_prob
    assert found.total_effect == total > 0
    np.testing.assert_allclose(found.recovery, 100 * effect / total)


def test_a_layer_is_named_also_where_the_subjects_last_token_is_not_shown():
    some, whole = (traced(tiny_model("llama"), token_range=tokens) for tokens in ((6, 9), "all"))
    np.testing.assert_allclose(some.deciding, whole.deciding, atol=1e-6)
    assert some.decision.layer == whole.decision.layer


def test_recovery_of_nothing_is_refused():
    found = traced(tiny_model("llama"), noise="0")
    assert abs(found.total_effect) < 1e-6
    object.__setattr__(found, "corrupted_prob", found.clean_prob)
    with pytest.raises(RomeError, match="nothing to recover; use more noise"):
        found.recovery  # noqa: B018


# the authors' numbers

TRACES = recorded.read("traces.json")["traces"]


def test_the_record_holds_fifteen_traces_three_of_them_whole_maps():
    assert [t["token_range"] for t in TRACES].count("all") == 3 and len(TRACES) == 15


@pytest.mark.parametrize("theirs", TRACES, ids=lambda t: f"{t['subject']}, {t['kind']}")
def test_the_authors_traces_of_the_default_model_are_reproduced(default_model, theirs):
    model, tokenizer = default_model
    found = trace(model, tokenizer, Fact.from_text(theirs["prompt"], theirs["subject"]),
                  kind=theirs["kind"], noise=theirs["noise_level"],
                  token_range=theirs["token_range"])
    for name in ("answer", "input_ids"):
        assert getattr(found, name) == theirs[name]
    assert list(found.subject_range) == theirs["subject_range"]
    tolerance = recorded.TOLERANCE["traces"]
    assert found.clean_prob == pytest.approx(theirs["clean_prob"], abs=tolerance)
    assert found.corrupted_prob == pytest.approx(theirs["corrupted_prob"], abs=tolerance)
    np.testing.assert_allclose(found.scores, theirs["scores"], rtol=0, atol=tolerance)
