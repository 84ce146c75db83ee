"""Small GGUF files as llama.cpp writes them: names by the gguf package, row order, norms."""

import json
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import ByteLevelBPETokenizer

from rome_mlx.storage.places import read_lines

#: general.architecture -> mlx-lm's model type
TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
         "gemma3": "gemma3_text", "gpt2": "gpt2"}
#: what llama.cpp takes for granted of Gemma 3: every sixth layer sees everything
OVERRIDES = {"gemma3": {"sliding_window_pattern": 6, "num_hidden_layers": 7}}


def byte_level() -> tuple[dict, ByteLevelBPETokenizer]:
    """(GGUF pairs, the tokenizer itself) of a small byte-level BPE."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(read_lines("neutral.txt"), vocab_size=320,
                                  special_tokens=["<|end|>"], show_progress=False)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = json.loads(tokenizer._tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.bos_token_id": 0,
    }, tokenizer


def pairs(architecture: str, args) -> dict:
    """The architecture's key-value pairs for mlx-lm's ModelArgs."""
    if architecture == "gpt2":
        own = {"block_count": args.n_layer, "context_length": args.n_ctx,
               "embedding_length": args.n_embd, "feed_forward_length": 4 * args.n_embd,
               "attention.head_count": args.n_head,
               "attention.layer_norm_epsilon": args.layer_norm_epsilon}
    else:
        own = {"block_count": args.num_hidden_layers, "context_length": 256,
               "embedding_length": args.hidden_size,
               "feed_forward_length": args.intermediate_size,
               "attention.head_count": args.num_attention_heads,
               "attention.head_count_kv": args.num_key_value_heads,
               "attention.key_length": 8 if architecture == "qwen2" else args.head_dim,
               "attention.layer_norm_rms_epsilon": args.rms_norm_eps,
               "rope.freq_base": args.rope_theta}
    if architecture == "gemma2":
        own |= {"attn_logit_softcapping": args.attn_logit_softcapping,
                "final_logit_softcapping": args.final_logit_softcapping}
    if architecture == "gemma3":
        own["attention.sliding_window"] = args.sliding_window
    return {f"{architecture}.{key}": value for key, value in own.items()}


def gguf_tensors(architecture: str, model) -> dict[str, np.ndarray]:
    """A model's parameters under GGUF's names, as llama.cpp's converter writes them."""
    enum = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(enum, len(model.layers))
    tensors = {}
    for path, values in tree_flatten(model.parameters()):
        theirs = path.replace("model.", "transformer.", 1) if architecture == "gpt2" else path
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        array = np.array(values.astype(mx.float32))
        if architecture == "llama" and ("attn_q." in name or "attn_k." in name):
            heads = (model.args.num_attention_heads if "attn_q." in name
                     else model.args.num_key_value_heads)
            array = array[_interleaved_order(array.shape[0], heads)]
        if architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        tensors[name] = array
    return tensors


def _interleaved_order(rows: int, heads: int) -> list[int]:
    """Row i of a head's first half goes to 2i, row i of its second half to 2i + 1."""
    size = rows // heads
    return [head * size + i // 2 + (i % 2) * size // 2 for head in range(heads)
            for i in range(size)]


def write(path: Path, architecture: str, metadata: dict, tensors: dict) -> Path:
    """`tensors` name -> array, or (bytes, GGML type) for quantized ones."""
    writer = gguf.GGUFWriter(str(path), architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        adders[type(value)](key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path: Path, architecture: str, model, metadata=None, tensors=None) -> Path:
    """A tiny model with the byte-level tokenizer; `metadata` and `tensors` replace or add."""
    return write(path, architecture,
                 {**pairs(architecture, model.args), **byte_level()[0], **(metadata or {})},
                 {**gguf_tensors(architecture, model), **(tensors or {})})
