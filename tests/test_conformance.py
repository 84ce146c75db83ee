"""Every row of the table of architectures keeps what the rest of the package promises.

Tiny random models from mlx-lm's own ModelArgs, in float32 and in 4 bits. A new dense model in
mlx-lm needs one row in the table, and what its ModelArgs ask for in tiny.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from oracles import value_log_probabilities
from samples import arrays, spd
from tiny import VOCABULARY, arguments, tiny_model

import rome_mlx as rm
from rome_mlx.editing import spread
from rome_mlx.editing.key import read_keys, read_states
from rome_mlx.editing.methods import rome
from rome_mlx.editing.value import _logits, _rows, _suffixes, optimize_values
from rome_mlx.models.architectures import SUPPORTED, installed_types
from rome_mlx.models.decoder import Decoder, Prefix
from rome_mlx.models.refused import REFUSED
from rome_mlx.models.tokens import encode
from rome_mlx.models.weights import weight, weight_shape

LAYER = 1
REQUEST = rm.EditRequest("ab {} is", "cd", "xy")
TEMPLATES = ["{}", "qrs. {}"]
TOKENIZER = FakeTokenizer()


#: configurations beside the first one that tiny.py has for a type
VARIANTS = {
    "gpt_neox in sequence": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm in parallel": ("stablelm", {"use_parallel_residual": True}),
    "llama with windows": ("llama", {"sliding_window": 6, "layer_types": [
        "sliding_attention", "full_attention"] * 2}),
    "llama with a head": ("llama", {"tie_word_embeddings": False}),
    "helium with a head": ("helium", {"tie_word_embeddings": False}),
    "minicpm3 without": ("minicpm3", {"tie_word_embeddings": True}),
    "afmoe unscaled": ("afmoe", {"mup_enabled": False}),
    "exaone4 without windows": ("exaone4", {"sliding_window_pattern": None}),
    "gemma4_text uncapped": ("gemma4_text", {"final_logit_softcapping": None}),
    "hunyuan_v1_dense, multi-query": ("hunyuan_v1_dense", {"num_key_value_heads": 1}),
    "gemma2, all heads": ("gemma2", {"num_key_value_heads": 4}),
}
CASES = {**{kind: (kind, {}) for kind in sorted(SUPPORTED)}, **VARIANTS}


@dataclass
class Case:
    """A tiny model, its decoder, and an edit computed on it."""

    config: dict
    bits: int
    model: nn.Module
    decoder: Decoder
    before: dict
    value: np.ndarray  # v*, what the edit is to make the MLP say
    edit: rm.Edit


@pytest.fixture(scope="module", params=[(name, bits) for name in CASES for bits in (32, 4)],
                ids=lambda p: f"{p[0]}-{'float32' if p[1] == 32 else '4bit'}")
def case(request):
    (kind, options), bits = CASES[request.param[0]], request.param[1]
    options = {"intermediate_size": 64, **options}
    model = tiny_model(kind, **options)
    if bits == 4:
        nn.quantize(model, group_size=32, bits=4, class_predicate=_quantizable)
    decoder, before, found = Decoder(model), arrays(model), []

    def record(*args, **options):
        found.extend(optimize_values(*args, **options))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rome, "optimize_values", record)
        width = weight_shape(decoder.module(LAYER, "down"))[1]
        try:
            edit = rm.rome(model, TOKENIZER, REQUEST, LAYER, moments={LAYER: spd(width)},
                           context_templates=TEMPLATES, hyperparameters={"v_num_grad_steps": 3})
        except RuntimeError as error:
            if "No implementation for problem shape" not in str(error):
                raise
            pytest.skip(f"MLX cannot compute this small quantized model here: {error}")
    value = found[0].initial + found[0].delta
    return Case(arguments(kind, **options), bits, model, decoder, before, value, edit)


def _quantizable(_, module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def ids(rows: int, tokens: int) -> mx.array:
    return mx.array(np.random.RandomState(0).randint(0, VOCABULARY, (rows, tokens)))


def staged(decoder: Decoder, tokens: mx.array, begin=0, prefixes=None) -> mx.array:
    h = decoder.enter(decoder.embed(tokens), begin)
    return decoder.logits(decoder.run(h, prefixes=prefixes))


def differ(one, other) -> float:
    """Largest difference over the largest number: products of other shapes round differently."""
    one, other = np.array(one, np.float64), np.array(other, np.float64)
    assert one.shape == other.shape
    return np.abs(one - other).max() / np.abs(other).max()


def test_stages_equal_the_model(case):
    for tokens in (1, 15):
        text = ids(2, tokens)
        assert differ(staged(case.decoder, text), case.model(text)) <= 1e-6


def test_a_reused_prefix_equals_the_full_run(case):
    text, prefixes = ids(2, 15), case.decoder.prefixes()
    staged(case.decoder, text[:, :9], prefixes=prefixes)
    for begin, end in ((9, 15), (4, 15), (8, 9)):
        rest = staged(case.decoder, text[:, begin:end], begin, [p.upto(begin) for p in prefixes])
        assert differ(rest, case.model(text[:, :end])[:, begin:]) <= 1e-5


def test_rows_with_prefixes_of_different_lengths_equal_each_row_alone(case):
    lengths, text = [2, 8, 5], ids(3, 12)
    alone = []
    for row, length in enumerate(lengths):
        prefixes = case.decoder.prefixes()
        staged(case.decoder, text[row: row + 1, :length], prefixes=prefixes)
        alone.append([p.upto(length) for p in prefixes])
    padding = [max(lengths) - length for length in lengths]
    together = [Prefix(*(mx.concatenate([mx.pad(x, [(0, 0), (0, 0), (n, 0), (0, 0)])
                                         for x, n in zip(parts, padding, strict=True)])
                         for parts in zip(*((p.keys, p.values) for p in layer), strict=True)),
                       mx.array(padding)) for layer in zip(*alone, strict=True)]
    suffix = mx.stack([text[row, n: n + 4] for row, n in enumerate(lengths)])
    logits = staged(case.decoder, suffix, mx.array(lengths), together)
    for row, n in enumerate(lengths):
        own = case.model(text[row: row + 1, : n + 4])[0, n:]
        assert differ(logits[row], own) <= 1e-5


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attn"])
def test_restoring_states_of_an_uncorrupted_run_recovers_everything(case, kind):
    trace = rm.trace(case.model, TOKENIZER, REQUEST.fact, kind=kind, samples=1, noise=0, window=2)
    assert trace.corrupted_prob == pytest.approx(trace.clean_prob, rel=1e-4)
    np.testing.assert_allclose(trace.scores, trace.clean_prob, rtol=1e-4)


def test_restoring_the_mlp_in_the_models_own_forward_gives_the_traced_score(case):
    trace = rm.trace(case.model, TOKENIZER, REQUEST.fact, kind="mlp", samples=1, noise=1.0,
                     window=1, token_range="subject_last")
    begin, end = trace.subject_range
    noise = mx.array(np.random.RandomState(1).randn(1, end - begin, case.decoder.dim),
                     dtype=mx.float32)
    path = case.decoder.path(LAYER, "mlp")
    embedding = next(name for name, module in case.model.named_modules()
                     if module is case.decoder.embedding)
    with rm.intercept(case.model, keep=[path]) as clean:
        case.model(mx.array([trace.input_ids]))

    def corrupt(h):
        return mx.concatenate([h[:, :begin], h[:, begin:end] + noise, h[:, end:]], axis=1)

    def restore(out):
        kept = clean[path][:, end - 1: end]
        return mx.concatenate([out[:, : end - 1], kept, out[:, end:]], axis=1)

    with rm.intercept(case.model, replace={embedding: corrupt, path: restore}):
        logits = case.model(mx.array([trace.input_ids]))[0, -1]
    expected = mx.softmax(logits)[trace.answer_id].item()
    assert trace.scores[0, LAYER] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attn"])
def test_with_little_noise_an_estimate_is_the_exact_effect(case, kind):
    """A finite difference: to first order in the noise, of the log odds of the answer."""
    options = dict(kind=kind, samples=1, noise=5e-4, window=2)
    exact = rm.trace(case.model, TOKENIZER, REQUEST.fact, **options)
    fast = rm.attribution(case.model, TOKENIZER, REQUEST.fact, **options)
    assert exact.exact and not fast.exact and fast.positions == exact.positions
    effect, estimate = (log_odds(t.scores) - log_odds(t.corrupted_prob) for t in (exact, fast))
    assert np.abs(estimate - effect).max() <= 0.1 * np.abs(effect).max()
    assert np.abs(effect).max() > 1e-5


def log_odds(probability) -> np.ndarray:
    probability = np.asarray(probability, np.float64)
    return np.log(probability) - np.log1p(-probability)


def subject_end(case) -> tuple[mx.array, int]:
    encoded = encode(TOKENIZER, REQUEST.text)
    return mx.array([encoded.ids]), encoded.range(*REQUEST.subject_span)[1] - 1


def test_the_key_read_is_what_the_down_projection_multiplies(case):
    down, path = case.decoder.module(LAYER, "down"), case.decoder.path(LAYER, "down")
    text, last = subject_end(case)
    with rm.intercept(case.model, keep=[path], keep_inputs=[path]) as seen:
        case.model(text)
    read = read_keys(case.decoder, TOKENIZER, [(REQUEST.text, REQUEST.subject_span)], LAYER)
    assert differ(read.keys[0], seen[path + ":input"][0, last]) <= 1e-5
    product = np.array(weight(down), np.float64) @ read.keys[0]
    if "bias" in down:
        product += np.array(down.bias)
    assert differ(product, seen[path][0, last]) <= 1e-5
    assert differ(read.outputs[0], seen[path][0, last]) <= 1e-5


def test_the_edited_model_computes_the_value_at_the_key(case):
    path, (text, last) = case.decoder.path(LAYER, "mlp"), subject_end(case)
    with rm.intercept(case.model, keep=[path]) as before:
        case.model(text)
    with case.edit.applied(case.model), rm.intercept(case.model, keep=[path]) as seen:
        case.model(text)
    value = case.value
    if case.decoder.architecture.mlp_norm:  # as long as what was there: a norm follows
        old = np.array(before[path][0, last], np.float64)
        value = value * np.linalg.norm(old) / np.linalg.norm(value)
    assert differ(seen[path][0, last], value) <= 1e-4


@pytest.mark.parametrize("part", ["mlp", "hidden"])
def test_the_values_suffixes_give_the_whole_models_probabilities(case, part):
    rows = _rows(TOKENIZER, [REQUEST], TEMPLATES)
    suffixes, _ = _suffixes(case.decoder, rows, LAYER, part)
    delta = mx.array(np.random.RandomState(1).randn(case.decoder.dim), dtype=mx.float32)
    logits = _logits(case.decoder, suffixes, LAYER, delta[None], part)
    fast = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    slow = value_log_probabilities(case.decoder, rows, LAYER, delta, part)
    assert differ(fast, slow) <= 1e-4


def test_the_gradient_is_of_delta_and_right(case):
    rows = _rows(TOKENIZER, [REQUEST], TEMPLATES)
    suffixes, _ = _suffixes(case.decoder, rows, LAYER, "mlp")
    random = np.random.RandomState(1)
    away = mx.array(random.randn(1, case.decoder.dim), dtype=mx.float32)
    weights = mx.array(random.randn(VOCABULARY), dtype=mx.float32)

    def loss(delta):
        return (_logits(case.decoder, suffixes, LAYER, delta, "mlp") @ weights).sum()

    gradient = mx.grad(loss)(away)
    size = mx.linalg.norm(gradient).item()
    assert np.isfinite(size) and size > 0
    along = gradient / size
    step = 0.005  # small: a mixture's choice of experts must not change on the way
    slope = (loss(away + step * along) - loss(away - step * along)).item() / (2 * step)
    assert slope == pytest.approx(size, rel=0.05)


def test_reverting_restores_every_array_bit_for_bit(case):
    with case.edit.applied(case.model):
        changed = arrays(case.model)
    after = arrays(case.model)
    assert case.before.keys() == after.keys()
    assert all(np.array_equal(case.before[name], after[name]) for name in after)
    assert any(name not in case.before or not np.array_equal(case.before[name], changed[name])
               for name in changed)


def test_the_saved_adapter_in_mlx_lm_gives_the_applied_edits_logits(case, tmp_path):
    save(case, tmp_path / "model")
    case.edit.save(tmp_path / "edit")
    loaded, _ = mlx_lm.load(str(tmp_path / "model"), adapter_path=str(tmp_path / "edit"))
    plain, _ = mlx_lm.load(str(tmp_path / "model"))
    text, _ = subject_end(case)
    with case.edit.applied(case.model):
        applied = case.model(text)
    assert differ(plain(text), case.model(text)) <= 1e-6
    assert differ(loaded(text), applied) <= 1e-4
    assert differ(applied, case.model(text)) > 1e-3


def save(case, directory: Path) -> None:
    """Write a case's model as mlx-lm does, with a tokenizer beside it."""
    directory.mkdir()
    config = dict(case.config)
    if case.bits == 4:
        config["quantization"] = {"group_size": 32, "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "model.safetensors"),
                        dict(tree_flatten(case.model.parameters())), {"format": "mlx"})
    TOKENIZER.save_pretrained(directory)


def test_every_model_type_of_mlx_lm_is_supported_or_refused_with_a_reason():
    assert not set(SUPPORTED) & set(REFUSED)
    unknown = installed_types() - set(SUPPORTED) - set(REFUSED)
    assert not unknown, f"give these a row in architectures.py or a reason: {sorted(unknown)}"
    assert not (set(SUPPORTED) | set(REFUSED)) - installed_types()


@pytest.mark.parametrize("kind", ["llama", "granite", "minicpm", "gptj"])
def test_memit_reaches_its_value_where_layers_scale_what_they_add(kind, monkeypatch):
    found = []

    def record(*args, **options):
        found.extend(optimize_values(*args, **options))
        return found

    monkeypatch.setattr(spread, "optimize_values", record)
    model = tiny_model(kind)
    decoder = Decoder(model)
    width = weight_shape(decoder.module(LAYER, "down"))[1]
    edit = rm.memit(model, TOKENIZER, [REQUEST], [LAYER], moments={LAYER: spd(width)},
                    context_templates=["{}"], hyperparameters={
                        "v_num_grad_steps": 3, "update_weight": 1e-9})
    with edit.applied(model):
        state = read_states(decoder, TOKENIZER, [(REQUEST.text, REQUEST.subject_span)], LAYER)
    assert differ(state[0], found[0].initial + found[0].delta) <= 1e-4


def test_the_second_moment_is_of_the_keys_in_the_models_own_forward(case, tmp_path):
    (tmp_path / "text.txt").write_text("the city of ab is cd, and not xy\n" * 8)
    moments = rm.second_moments(case.model, TOKENIZER, [LAYER], str(tmp_path / "text.txt"), 40,
                                row_length=20, output=tmp_path / "moments")
    text = "the city of ab is cd, and not xy\n" * 8
    rows = mx.array(TOKENIZER.encode(text)[:40]).reshape(2, 20)
    path = case.decoder.path(LAYER, "down")
    with rm.intercept(case.model, keep_inputs=[path]) as seen:
        case.model(rows)
    keys = np.array(seen[path + ":input"], np.float64).reshape(40, -1)
    assert moments[LAYER].count == 40
    assert differ(moments[LAYER].value(), keys.T @ keys / 40) <= 1e-5
