"""Turn a GGUF file into an ordinary mlx-lm directory.

Q4_0, Q4_1 and Q8_0 stay quantized, as mlx's own 4- and 8-bit groups of 32 with float32 scales,
value for value. Every other quantization (the K-quants, say) is dequantized to float32 by the gguf
package, and float weights keep their type, so that no value is rounded.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from mlx_lm.utils import load_model

from ...errors import RomeError
from ...storage.files import system_error
from .file import KEPT, GGUFFile, Tensor
from .tokenizer import write_tokenizer

#: part of the cache's key: raise it when the output changes
VERSION = 2
_FILE = 1 << 30  # bytes of weights that are held at once, and written as one file

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
    """The file's key-value pairs, the architecture's own by their name without its prefix."""

    def __init__(self, file: GGUFFile):
        self.pairs = file.metadata
        self.shapes = {tensor.name: tensor.shape for tensor in file.tensors}
        self.architecture = self.pairs["general.architecture"]

    def __call__(self, key, default=None):
        value = self.pairs.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise RomeError(f"it has no {self.architecture}.{key}")
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
        **_rope_scaling(m),
    }


def _rope_scaling(m: Metadata) -> dict:
    kind = m("rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind != "linear":
        raise RomeError(f"its RoPE scaling {kind!r} is not supported; linear scaling is")
    return {"rope_scaling": {"rope_type": "linear", "factor": m("rope.scaling.factor")}}


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
        "rope_local_base_freq": m("rope.freq_base_swa", 10000.0),
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
    directory = Path(directory)
    try:
        file = GGUFFile(path)
        family, config = _read(file)
        write_tokenizer(file.metadata, directory)
        _save(directory, _weights(file.tensors, family, config))
        (directory / "config.json").write_text(json.dumps(config, indent=1))
        load_model(directory, lazy=True)  # every weight is there and has its shape
    except OSError:
        raise
    except RomeError as error:
        raise RomeError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged file leads to
        if disk := system_error(error):
            raise disk from error
        reason = " ".join(str(error).split())[:200]
        raise RomeError(f"{path} is not a whole GGUF model ({type(error).__name__}: {reason}); "
                        "download it again") from error


def _save(directory: Path, weights: Iterator[tuple[str, mx.array]]) -> None:
    """In files of about `_FILE` bytes, with mlx-lm's names and index."""
    files, where, total = [], {}, 0
    for held in _in_files(weights):
        files.append(directory / f"part-{len(files)}.safetensors")
        where |= dict.fromkeys(held, len(files))
        total += sum(array.nbytes for array in held.values())
        mx.eval(held)
        try:
            mx.save_safetensors(str(files[-1]), held, {"format": "mlx"})
        except RuntimeError as error:
            raise OSError(str(error)) from error
        held.clear()  # before the next are read
    if len(files) == 1:
        files[0].rename(directory / "model.safetensors")
        return
    name = f"model-{{:05d}}-of-{len(files):05d}.safetensors"
    for i, file in enumerate(files, 1):
        file.rename(directory / name.format(i))
    index = {"metadata": {"total_size": total},
             "weight_map": {weight: name.format(where[weight]) for weight in sorted(where)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _in_files(weights: Iterator[tuple[str, mx.array]]) -> Iterator[dict[str, mx.array]]:
    held, size = {}, 0
    for name, array in weights:
        if held and size + array.nbytes > _FILE:
            yield held
            held, size = {}, 0
        held[name] = array
        size += array.nbytes
    yield held


def _read(file: GGUFFile) -> tuple[Family, dict]:
    """Of the file: how its weights are named, and config.json but for what they say."""
    m = Metadata(file)
    if m.architecture not in FAMILIES:
        raise RomeError(f"GGUF architecture {m.architecture!r} is not supported; "
                        f"supported are: {', '.join(FAMILIES)}")
    blocks = {name.split(".")[1] for name in m.shapes if name.startswith("blk.")}
    if len(blocks) != m("block_count"):
        raise RomeError(f"it has {len(blocks)} blocks and says {m('block_count')}")
    family = FAMILIES[m.architecture]
    config = {"model_type": family.model_type, **family.config(m)}
    if m("rope.dimension_count", head := config.get("head_dim", 0)) != head and head:
        raise RomeError("it rotates a part of each attention head, which mlx-lm's model does not")
    ends = {file.metadata[key] for name in ("eos", "eot")
            if (key := f"tokenizer.ggml.{name}_token_id") in file.metadata}
    if ends:
        config["eos_token_id"] = sorted(ends)
    return family, config


def _weights(tensors: list[Tensor], family: Family,
             config: dict) -> Iterator[tuple[str, mx.array]]:
    """The tensors one by one, by mlx-lm's names; says in `config`, in the end, which are
    quantized, and RoPE's factors."""
    modes = {}
    for tensor in tensors:
        if tensor.name == "rope_freqs.weight":
            config["rope_scaling"] = _llama3_scaling(tensor.floats(), config)
            continue
        name, kind = _name(tensor.name, family)
        if name is None:
            continue
        keep = tensor.kind in KEPT and len(tensor.shape) == 2 and name != "model.wpe"
        parts = tensor.packed() if keep else {"weight": tensor.floats()}
        if family.permuted and name.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads" if name.endswith("q_proj")
                           else "num_key_value_heads"]
            parts = {k: _interleaved_to_halves(v, heads) for k, v in parts.items()}
        if family.norm_plus_one and "norm" in name:
            parts["weight"] = parts["weight"] - 1
        if keep:
            modes[name] = {"group_size": 32, "bits": 8 if tensor.kind == Type.Q8_0 else 4}
        for part, values in parts.items():
            array = mx.array(values)
            if tensor.kind == Type.BF16 and array.ndim == 2:
                array = array.astype(mx.bfloat16)  # what it was
            yield f"{name}.{kind if part == 'weight' else part}", array
    if modes:
        bits = [mode["bits"] for mode in modes.values()]
        default = {"group_size": 32, "bits": max(set(bits), key=bits.count)}
        config["quantization"] = {**default, **{n: m for n, m in modes.items() if m != default}}


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
