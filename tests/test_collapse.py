"""Watching a model that takes one edit after another."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from scipy.special import logsumexp
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.lowrank import dense
from rome_mlx.evaluation.collapse import NORM_LIMIT, PERPLEXITY_LIMIT, Guard, perplexity
from rome_mlx.evaluation.side_effects import neutral_tokens
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.hooks import find_module
from rome_mlx.models.weights import weight as dequantized
from rome_mlx.storage.places import read_lines

PATH = "model.layers.1.mlp.down_proj"
REQUEST = rm.EditRequest("{} was", "a long subject", "b")


def edit_of(change):
    """An edit that adds `change` (d_in, d_out), transposed, to the weight."""
    return rm.Edit("rome", [REQUEST], {PATH: dense(change)}, [1])


def neutral(model):
    return neutral_tokens(model, FakeTokenizer(), None, 64)


def test_perplexity_is_that_of_every_line_read_alone():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    nll = []
    for line in read_lines("neutral.txt"):
        ids = mx.array([tokenizer.encode(line)[:64]])
        logits = model(ids)[0, :-1]
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        nll += (-mx.take_along_axis(log_p, ids[0, 1:, None], axis=1)[:, 0]).tolist()
    assert perplexity(model, neutral(model)) == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)


def test_perplexity_in_bfloat16_is_that_of_its_logits_in_float64():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    model.set_dtype(mx.bfloat16)
    decoder, nll = Decoder(model), []
    rows = [tokenizer.encode(line)[:64] for line in read_lines("neutral.txt")]
    width = max(map(len, rows))
    h = decoder.run(decoder.enter(decoder.embed([row + [0] * (width - len(row)) for row in rows])))
    for row, logits in zip(rows, decoder.logits(h).astype(mx.float32), strict=True):
        read = np.array(logits, np.float64)[: len(row) - 1]
        nll += (logsumexp(read, axis=1) - read[range(len(read)), row[1:]]).tolist()
    assert perplexity(model, neutral(model)) == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)


def test_growth_counts_all_applied_edits_together():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    weight = np.array(find_module(model, PATH).weight, np.float64)
    guard, half = Guard(model, tokenizer), edit_of(0.5 * weight.T)
    back = edit_of(-0.5 * weight.T)
    half.apply(model)
    assert guard.check().growth[PATH] == pytest.approx(1.5, rel=1e-6)
    back.apply(model)
    health = guard.check()
    assert health.edits == 2 and health.growth[PATH] == pytest.approx(1, rel=1e-6)
    assert health.perplexity == pytest.approx(health.perplexity_before, rel=1e-4)


def test_a_model_without_edits_raises_no_warning():
    health = Guard(tiny_model("llama"), FakeTokenizer()).check()
    assert health.edits == 0 and health.growth == {} and health.warnings() == []


def test_past_either_limit_a_warning_names_the_value_and_the_remedy():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    weight = np.array(find_module(model, PATH).weight, np.float64)
    guard = Guard(model, tokenizer)
    guard.before = perplexity(model, neutral(model)) / (1.01 * PERPLEXITY_LIMIT)
    with edit_of(1e-6 * weight.T).applied(model):
        only, = guard.check().warnings()
    assert "perplexity" in only and "take edits back" in only
    guard = Guard(model, tokenizer)
    guard.before *= 100
    with edit_of((NORM_LIMIT - 0.99) * weight.T).applied(model):
        only, = guard.check().warnings()
    assert PATH in only and f"limit {NORM_LIMIT}" in only and "memit" in only


def test_a_quantized_weight_is_measured_with_its_side_adapter():
    model, tokenizer = tiny_model("llama", hidden_size=64, intermediate_size=64), FakeTokenizer()
    nn.quantize(model, group_size=32, bits=4)
    change = np.array(dequantized(find_module(model, PATH)), np.float64).T
    guard = Guard(model, tokenizer)
    with edit_of(change).applied(model):
        health = guard.check()
    assert health.growth[PATH] == pytest.approx(2, rel=1e-4)
    assert health.perplexity != health.perplexity_before
