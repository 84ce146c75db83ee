"""Many edits in one batch: every row says what the model with that row's edit alone says."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.lowrank import LowRank
from rome_mlx.models.architectures import ARCHITECTURES
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.probabilities import said
from rome_mlx.models.side_by_side import side_by_side
from rome_mlx.models.tokens import encode
from rome_mlx.models.weights import weight_shape

PROMPTS = ["ab", "The tower is in", "a cat sat on the mat and the dog"]


def edits_of(model, ranks=((1,), (3, 2), (2,))):
    """Edits strong enough to change what is said: one of one layer, one of two, another rank."""
    decoder, random = Decoder(model), np.random.RandomState(0)
    layers = decoder.dense_layers
    found = []
    for number, some in enumerate(ranks):
        deltas = {}
        for layer, rank in zip(layers[-len(some):], some, strict=True):
            out, into = weight_shape(decoder.module(layer, "down"))
            deltas[decoder.path(layer, "down")] = LowRank(random.randn(into, rank),
                                                          3 * random.randn(rank, out))
        found.append(rm.Edit(f"edit {number}", [], deltas, layers[-len(some):]))
    return found


def alone(model, tokenizer, prompts, edits):
    found = []
    for prompt, edit in zip(prompts, edits, strict=True):
        if edit is None:
            found += said(model, tokenizer, [prompt])
        else:
            with edit.applied(model):
                found += said(model, tokenizer, [prompt])
    return found


def asked(model, tokenizer, edits, tokens=6):
    prompts = [(encode(tokenizer, prompt).ids, tokens) for _ in edits for prompt in PROMPTS]
    return prompts, [edit for edit in edits for _ in PROMPTS]


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_row_says_what_the_model_with_its_edit_says(kind):
    model, tokenizer = tiny_model(kind), FakeTokenizer()
    edits = [None, *edits_of(model)]
    prompts, owners = asked(model, tokenizer, edits)
    together = said(model, tokenizer, prompts, owners)
    assert together == alone(model, tokenizer, prompts, owners)
    assert len({tuple(together[i: i + len(PROMPTS)])
                for i in range(0, len(together), len(PROMPTS))}) > 1  # the edits do something
    assert said(model, tokenizer, prompts) == alone(model, tokenizer, prompts, [None] * len(owners))


def test_rows_beside_quantized_weights_and_an_edit_that_is_applied_already():
    model, tokenizer = tiny_model("llama", intermediate_size=64), FakeTokenizer()
    nn.quantize(model, group_size=32, bits=4)
    first, *edits = edits_of(model)
    with first.applied(model):
        prompts, owners = asked(model, tokenizer, [*edits, None])
        assert said(model, tokenizer, prompts, owners) == alone(model, tokenizer, prompts, owners)


def test_a_row_adds_its_own_change_only():
    model = tiny_model("llama")
    edits, decoder = edits_of(model, ((2,), (1,))), Decoder(model)
    path = decoder.path(decoder.dense_layers[-1], "down")
    module = decoder.module(decoder.dense_layers[-1], "down")
    x = mx.array(np.random.RandomState(1).randn(3, 2, decoder.key_width), mx.float32)
    with side_by_side(model, [edits[0], None, edits[1]]) as choose:
        choose([2, 1, 0])
        found = np.array(decoder.module(decoder.dense_layers[-1], "down")(x))
    plain = np.array(module(x))
    for row, edit in ((0, edits[1]), (2, edits[0])):
        np.testing.assert_allclose(
            found[row] - plain[row], np.array(x[row]) @ edit.deltas[path].change, atol=1e-4)
    np.testing.assert_array_equal(found[1], plain[1])
    assert decoder.module(decoder.dense_layers[-1], "down") is module  # and all is taken back


def test_the_model_comes_back_after_an_error():
    model = tiny_model("llama")
    modules = dict(model.named_modules())
    with pytest.raises(KeyError), side_by_side(model, edits_of(model)):
        raise KeyError
    assert dict(model.named_modules()).keys() == modules.keys()
    assert all(found is modules[path] for path, found in model.named_modules())
