"""The model in stages computes what the model computes."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny import VOCABULARY, tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.models.decoder import Decoder, Prefix

TYPES = ["gemma2", "gemma3_text", "gpt2", "llama", "qwen3"]  # test_conformance.py has them all
#: models whose layers differ: some see a window of six tokens only
SLIDING = {
    "gemma3_text": {},
    "llama": dict(sliding_window=6, layer_types=["full_attention", "sliding_attention"] * 2),
}


def ids(rows: int, tokens: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.RandomState(seed).randint(0, VOCABULARY, (rows, tokens)))


def staged(decoder: Decoder, tokens: mx.array) -> mx.array:
    return decoder.logits(decoder.run(decoder.enter(decoder.embed(tokens))))


def distance(one: mx.array, other: mx.array) -> float:
    assert one.shape == other.shape
    return mx.abs(one - other).max().item()


def rounding(one: mx.array, other: mx.array) -> float:
    """Largest difference over the largest logit: products of other shapes round differently."""
    return distance(one, other) / mx.abs(other).max().item()


def quantized(model: nn.Module) -> nn.Module:
    nn.quantize(model, group_size=32, bits=4)
    return model


@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("model_type", TYPES)
def test_stages_equal_the_model(model_type, tokens):
    model, text = tiny_model(model_type), ids(2, tokens)
    assert distance(staged(Decoder(model), text), model(text)) <= 1e-5


@pytest.mark.parametrize("model_type", TYPES)
def test_stages_equal_the_model_in_4_bits(model_type):
    model, text = quantized(tiny_model(model_type, intermediate_size=64)), ids(2, 20)
    assert any(isinstance(m, nn.QuantizedLinear) for m in model.modules())
    assert distance(staged(Decoder(model), text), model(text)) <= 1e-5


@pytest.mark.parametrize("model_type", SLIDING)
def test_stages_equal_the_model_where_layers_see_a_window(model_type):
    model = tiny_model(model_type, **SLIDING[model_type])
    unlimited = tiny_model(model_type, **{**SLIDING[model_type], "sliding_window": 1000})
    text = ids(2, 20)
    assert distance(staged(Decoder(model), text), model(text)) <= 1e-5
    assert distance(model(text), unlimited(text)) > 1e-2  # the window does matter here


def test_stages_equal_a_model_with_its_own_vocabulary_head():
    model, text = tiny_model("llama", tie_word_embeddings=False), ids(1, 7)
    assert not Decoder(model).tied and Decoder(tiny_model("llama")).tied
    assert distance(staged(Decoder(model), text), model(text)) <= 1e-5


@pytest.mark.parametrize("reused", [1, 3, 11])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_reused_prefix_gives_the_full_run(model_type, reused):
    """One row's prefix, cut to a length, serves a batch of texts that begin alike."""
    model = tiny_model(model_type, **SLIDING.get(model_type, {}))
    decoder, text = Decoder(model), ids(3, 16)
    text[:, :reused] = text[:1, :reused]
    prefixes = decoder.prefixes()
    decoder.run(decoder.enter(decoder.embed(text[:1, :12])), prefixes=prefixes)

    cut = [p.upto(reused) for p in prefixes]
    h = decoder.enter(decoder.embed(text[:, reused:]), reused)
    logits = decoder.logits(decoder.run(h, prefixes=cut))
    assert rounding(logits, model(text)[:, reused:]) <= 1e-5


@pytest.mark.parametrize("model_type", TYPES)
def test_prefixes_grow_over_several_runs(model_type):
    model = tiny_model(model_type, **SLIDING.get(model_type, {}))
    decoder, text, prefixes, logits = Decoder(model), ids(2, 15), None, []
    for begin, end in ((0, 4), (4, 5), (5, 15)):
        prefixes = decoder.prefixes() if prefixes is None else [p.upto(begin) for p in prefixes]
        h = decoder.enter(decoder.embed(text[:, begin:end]), begin)
        logits.append(decoder.logits(decoder.run(h, prefixes=prefixes)))
    assert rounding(mx.concatenate(logits, axis=1), model(text)) <= 1e-5


def test_prefix_rows_repeat_for_a_longer_batch():
    """Two rows of prefix under six rows of text: the batch goes through them again and again."""
    model = tiny_model("llama")
    decoder, start, rest = Decoder(model), ids(2, 5), ids(6, 4, seed=1)
    prefixes = decoder.prefixes()
    decoder.run(decoder.enter(decoder.embed(start)), prefixes=prefixes)
    h = decoder.enter(decoder.embed(rest), 5)
    logits = decoder.logits(decoder.run(h, prefixes=[p.upto(5) for p in prefixes]))
    whole = mx.concatenate([mx.concatenate([start] * 3), rest], axis=1)
    assert rounding(logits, model(whole)[:, 5:]) <= 1e-5


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("model_type", TYPES)
def test_rows_with_prefixes_of_different_lengths_equal_each_row_alone(model_type, heads):
    model = tiny_model(model_type, num_key_value_heads=heads, **SLIDING.get(model_type, {}))
    decoder, lengths, text = Decoder(model), [3, 9, 6], ids(3, 14)
    longest = max(lengths)
    alone = []
    for row, length in enumerate(lengths):
        prefixes = decoder.prefixes()
        decoder.run(decoder.enter(decoder.embed(text[row: row + 1, :length])), prefixes=prefixes)
        alone.append([p.upto(length) for p in prefixes])
    padding = [longest - length for length in lengths]
    together = []
    for layer in zip(*alone, strict=True):
        keys, values = (
            mx.concatenate([mx.pad(getattr(p, part), [(0, 0), (0, 0), (n, 0), (0, 0)])
                            for p, n in zip(layer, padding, strict=True)])
            for part in ("keys", "values"))
        together.append(Prefix(keys, values, mx.array(padding)))

    suffix = mx.stack([text[r, n: n + 5] for r, n in enumerate(lengths)])
    h = decoder.enter(decoder.embed(suffix), mx.array(lengths))
    logits = decoder.logits(decoder.run(h, prefixes=together))
    for row, length in enumerate(lengths):
        own = model(text[row: row + 1, : length + 5])[0, length:]
        assert rounding(logits[row], own) <= 1e-5


@pytest.mark.parametrize("model_type", TYPES)
def test_stretches_of_layers_join(model_type):
    model, text = tiny_model(model_type), ids(1, 8)
    decoder = Decoder(model)
    h = decoder.enter(decoder.embed(text))
    h = decoder.run(decoder.run(h, 0, 2), 2)
    assert distance(decoder.logits(h), model(text)) <= 1e-5


def test_a_layer_out_of_range_is_refused_with_the_range():
    decoder = Decoder(tiny_model("llama"))
    for layer in (4, 99, -1):
        with pytest.raises(RomeError, match=f"layer {layer} .* 0 to 3"):
            decoder.check_layer(layer)


def loaded(kind: str) -> nn.Module:
    return type("Model", (nn.Module,), {"__module__": f"mlx_lm.models.{kind}"})()


@pytest.mark.parametrize("kind, reason", [
    ("mamba", "state-space"), ("qwen3_next", "hybrid"), ("mixtral", "mixtures of experts"),
    ("bitnet", "BitLinear"), ("iquestloopcoder", "run twice"), ("of_tomorrow", "no row")])
def test_an_unsupported_type_is_refused_by_name_with_the_reason_and_the_supported_ones(
        kind, reason):
    with pytest.raises(RomeError, match=f"'{kind}' is not supported: .*{reason}.*: .*llama"):
        Decoder(loaded(kind))


def test_layers_that_are_mixtures_are_refused_by_number_and_the_dense_ones_named():
    decoder = Decoder(tiny_model("deepseek"))
    assert decoder.dense_layers == [0, 1] and decoder.path(1, "down").endswith("down_proj")
    with pytest.raises(RomeError, match=r"layer 2 is a mixture of experts.*from layers 0, 1"):
        decoder.module(2, "down")


def test_a_model_of_mixtures_alone_is_refused():
    with pytest.raises(RomeError, match=r"qwen3_moe model is not supported: layer 0 is a mixture"):
        Decoder(tiny_model("qwen3_moe", mlp_only_layers=[]))


@pytest.mark.parametrize("kind, arguments, reason", [
    ("nanbeige", {"num_loops": 2}, "num_loops"),
    ("gemma4_text", {"hidden_size_per_layer_input": 8}, "per-layer inputs"),
    ("gemma4_text", {"num_kv_shared_layers": 2}, "of a lower one"),
])
def test_a_configuration_that_a_row_does_not_hold_for_is_refused(kind, arguments, reason):
    with pytest.raises(RomeError, match=f"this {kind} model is not supported: .*{reason}"):
        Decoder(tiny_model(kind, **arguments))


def test_a_sharded_projection_is_refused_by_its_layer():
    model = tiny_model("llama")
    group = mx.distributed.init()
    for layer in model.layers[:2]:
        layer.mlp.down_proj = nn.layers.distributed.shard_linear(
            layer.mlp.down_proj, "sharded-to-all", group=group)
    with pytest.raises(RomeError, match=r"of layer 0 is a ShardedToAllLinear.*from layers 2, 3"):
        Decoder(model).path(0, "down")


@pytest.mark.parametrize("kind, positions", [("gpt2", 256), ("gpt_bigcode", 256), ("llama", None)])
def test_a_text_longer_than_the_learned_positions_is_refused(kind, positions):
    decoder = Decoder(tiny_model(kind))
    assert decoder.positions == positions
    embeddings = decoder.embed([[1] * 257])
    if positions is None:
        assert decoder.enter(embeddings).shape == embeddings.shape
        return
    with pytest.raises(RomeError, match="a text of 257 tokens is too long .* 256 positions"):
        decoder.enter(embeddings)
    with pytest.raises(RomeError, match="a text of 257 tokens"):
        decoder.enter(embeddings[:, :7], 250)
    assert decoder.enter(embeddings[:, :6], 250).shape[1] == 6
