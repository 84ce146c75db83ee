"""Turn a GGUF file into an ordinary mlx-lm directory.

Q4_0, Q4_1 and Q8_0 stay quantized, as mlx's own 4- and 8-bit groups of 32 with float32 scales,
value for value. Every other quantization is dequantized to float32 by the gguf package.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from gguf.constants import GGMLQuantizationType as Type

from .errors import RomeError
from .gguf_tokenizer import write_tokenizer

#: part of the cache's key: raise it when the output changes
VERSION = 1

_LLAMA = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    **_LLAMA, "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2 = {
    "token_embd": "model.wte", "position_embd": "model.wpe", "output_norm": "model.ln_f",
    "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture is written by llama.cpp and read by mlx-lm."""

    model_type: str
    names: dict[str, str]
    config: Callable[["Metadata"], dict]
    layers: str = "model.layers"
    permuted: bool = False  # rows of Q and K interleaved for llama.cpp's RoPE
    norm_plus_one: bool = False  # the file holds 1 + what mlx-lm adds 1 to


class Metadata:
    """The file's key-value pairs, architecture keys without their prefix."""

    def __init__(self, reader: gguf.GGUFReader):
        self.fields = {key: field for key, field in reader.fields.items()}
        self.shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
        self.architecture = self.raw("general.architecture")

    def raw(self, key, default=None):
        return self.fields[key].contents() if key in self.fields else default

    def __call__(self, key, default=None):
        value = self.raw(f"{self.architecture}.{key}", default)
        if value is None:
            raise RomeError(f"the GGUF file has no {self.architecture}.{key}; "
                            "it is damaged or of an unknown version")
        return value


def _llama_config(m: Metadata) -> dict:
    heads = m("attention.head_count")
    return {
        "hidden_size": m("embedding_length"), "num_hidden_layers": m("block_count"),
        "intermediate_size": m("feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": m("attention.head_count_kv", heads),
        "head_dim": m("attention.key_length", m("embedding_length") // heads),
        "rms_norm_eps": m("attention.layer_norm_rms_epsilon"),
        "rope_theta": m("rope.freq_base", 10000.0),
        "max_position_embeddings": m("context_length"),
        "vocab_size": m.shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in m.shapes,
        "attention_bias": "blk.0.attn_q.bias" in m.shapes,
    }


def _gemma2_config(m: Metadata) -> dict:
    return {
        **_llama_config(m),
        "attn_logit_softcapping": m("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": m("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": (m("embedding_length") / m("attention.head_count")
                                  if m("block_count") == 46 else m("attention.key_length", 256)),
    }


def _gemma3_config(m: Metadata) -> dict:
    return {
        **_llama_config(m), "rope_theta": m("rope.freq_base", 1e6),
        "sliding_window": m("attention.sliding_window", 512), "sliding_window_pattern": 6,
        "query_pre_attn_scalar": (m("embedding_length") / m("attention.head_count")
                                  if m("block_count") == 62 else m("attention.key_length", 256)),
    }


def _gpt2_config(m: Metadata) -> dict:
    context = m("context_length")
    return {
        "n_ctx": context, "n_positions": context, "n_embd": m("embedding_length"),
        "n_head": m("attention.head_count"), "n_layer": m("block_count"),
        "layer_norm_epsilon": m("attention.layer_norm_epsilon"),
        "vocab_size": m.shapes["token_embd.weight"][0],
    }


#: general.architecture -> family
FAMILIES = {
    "llama": Family("llama", _LLAMA, _llama_config, permuted=True),
    "qwen2": Family("qwen2", _LLAMA, _llama_config),
    "qwen3": Family("qwen3", _LLAMA, _llama_config),
    "gemma2": Family("gemma2", _GEMMA, _gemma2_config, norm_plus_one=True),
    "gemma3": Family("gemma3_text", _GEMMA, _gemma3_config, norm_plus_one=True),
    "gpt2": Family("gpt2", _GPT2, _gpt2_config, layers="model.h"),
}


def convert(path: str | Path, directory: str | Path) -> None:
    """Write the GGUF file at `path` as an mlx-lm model into an existing `directory`.

    Raises RomeError that names the file for damaged files and architectures without a family.
    """
    try:
        reader = gguf.GGUFReader(str(path))
        metadata = Metadata(reader)
    except (ValueError, KeyError, IndexError, OSError, TypeError, OverflowError,
            MemoryError, UnicodeDecodeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if metadata.architecture not in FAMILIES:
        raise RomeError(f"{path}: GGUF architecture {metadata.architecture!r} is not supported; "
                        f"supported are: {', '.join(FAMILIES)}")
    family, directory = FAMILIES[metadata.architecture], Path(directory)
    try:
        config = {"model_type": family.model_type, **family.config(metadata)}
        weights = _weights(reader, family, config)
        write_tokenizer(metadata.raw, metadata.architecture, directory)
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise _damaged(path, error) from error
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    if (eos := metadata.raw("tokenizer.ggml.eos_token_id")) is not None:
        config["eos_token_id"] = eos
    (directory / "config.json").write_text(json.dumps(config, indent=1))


def _damaged(path, error) -> RomeError:
    if isinstance(error, RomeError):
        return RomeError(f"{path}: {error}")
    return RomeError(f"{path} is not a whole GGUF file ({type(error).__name__}: {error}); "
                     "download it again")


def _weights(reader, family: Family, config: dict) -> dict[str, mx.array]:
    weights, modes = {}, {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            config["rope_scaling"] = _llama3_scaling(np.array(tensor.data), config)
            continue
        name, kind = _name(tensor.name, family)
        if name is None:
            continue
        parts = _parts(tensor, keep="norm" not in name and "wpe" not in name)
        if family.permuted and name.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads" if name.endswith("q_proj")
                           else "num_key_value_heads"]
            parts = {k: _interleaved_to_halves(v, heads) for k, v in parts.items()}
        if family.norm_plus_one and "norm" in name:
            parts["weight"] = parts["weight"] - 1
        if "scales" in parts:
            modes[name] = {"group_size": 32, "bits": 32 * parts["weight"].shape[1]
                           // (32 * parts["scales"].shape[1])}
        for part, array in parts.items():
            weights[f"{name}.{kind if part == 'weight' else part}"] = mx.array(array)
    if modes:
        bits = [mode["bits"] for mode in modes.values()]
        default = {"group_size": 32, "bits": max(set(bits), key=bits.count)}
        config["quantization"] = {**default, **{n: m for n, m in modes.items() if m != default}}
    return weights


def _name(name: str, family: Family) -> tuple[str | None, str]:
    """(module path, "weight" or "bias"); None for what mlx-lm's model does not have."""
    stem, _, kind = name.rpartition(".")
    block, _, part = stem.rpartition(".")
    if part == "output" and "output" not in family.names:
        return None, kind  # GPT-2's copy of its embedding
    if part not in family.names or kind not in ("weight", "bias"):
        raise RomeError(f"unknown tensor {name!r} in a {family.model_type} model")
    module = family.names[part]
    return (f"{family.layers}.{int(block[4:])}.{module}" if block else module), kind


def _parts(tensor, keep: bool) -> dict[str, np.ndarray]:
    """The tensor as mlx stores it: weight alone, or packed weight with scales and biases."""
    kind, data = Type(tensor.tensor_type), tensor.data
    if keep and kind in (Type.Q4_0, Type.Q4_1, Type.Q8_0):
        return _packed(kind, data)
    if kind == Type.BF16:
        return {"weight": gguf.quants.dequantize(data, kind)}
    if kind in (Type.F32, Type.F16):
        return {"weight": np.array(data)}
    return {"weight": gguf.quants.dequantize(data, kind)}


def _packed(kind: Type, data: np.ndarray) -> dict[str, np.ndarray]:
    """GGUF blocks of 32, (out, bytes) uint8, as mlx groups: w = scale * q + bias."""
    size = {Type.Q4_0: 18, Type.Q4_1: 20, Type.Q8_0: 34}[kind]
    rows = data.shape[0]
    blocks = np.ascontiguousarray(data).reshape(rows, -1, size)
    scales = blocks[..., 0:2].copy().view(np.float16)[..., 0].astype(np.float32)
    if kind == Type.Q8_0:
        codes = (blocks[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint32)
        return {"weight": _pack(codes.reshape(rows, -1), 8), "scales": scales,
                "biases": -128 * scales}
    nibbles = blocks[..., size - 16:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).astype(np.uint32)
    biases = (-8 * scales if kind == Type.Q4_0
              else blocks[..., 2:4].copy().view(np.float16)[..., 0].astype(np.float32))
    return {"weight": _pack(codes.reshape(rows, -1), 4), "scales": scales, "biases": biases}


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """(out, in) codes -> (out, in * bits / 32) uint32, the first code in the lowest bits."""
    lanes = codes.reshape(codes.shape[0], -1, 32 // bits)
    return np.bitwise_or.reduce(lanes << (bits * np.arange(32 // bits, dtype=np.uint32)), axis=-1)


def _interleaved_to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of Q and K rows, (2i, 2i+1), to the halves that mlx-lm rotates."""
    out = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(out.swapaxes(1, 2)).reshape(rows.shape)


def _llama3_scaling(factors: np.ndarray, config: dict) -> dict:
    """Llama 3's RoPE scaling from the per-frequency factors that the file holds."""
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    dims = 2 * len(factors)
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    smooth = np.clip((8192 / wavelength - 1) / 3, 0, 1)
    if not np.allclose(1 / ((1 - smooth) / scaling["factor"] + smooth), factors, rtol=1e-3):
        raise RomeError("its RoPE factors are not Llama 3's and mlx-lm has no place for them")
    return scaling
