"""One table: where a model type keeps its layers, MLPs, attentions and vocabulary.

A row is all it takes to support a model. Keys are the stems of mlx-lm's model files; paths are
as in `model.named_modules()`, layer parts relative to the layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from .errors import RomeError


@dataclass(frozen=True)
class Architecture:
    """Where things are in a model, and the traits of its arithmetic that matter here."""

    layers: str = "model.layers"
    mlp: str = "mlp"
    attention: str = "self_attn"
    down: str = "mlp.down_proj"  # the MLP's output projection: its input is ROME's key
    embedding: str = "model.embed_tokens"
    positions: str | None = None  # learned positions, added to the embedding
    norm: str = "model.norm"  # before the vocabulary
    head: str = "lm_head"  # where absent, the embedding read backwards
    sliding: str | None = None  # attribute of a layer: true where it sees a window only
    window: str | None = None  # attribute of the model: that window's length in tokens
    embedding_scale: Callable[[nn.Module, mx.array], mx.array] | None = None
    logit_scale: Callable[[nn.Module, mx.array], mx.array] | None = None
    parallel: bool = False  # attention and MLP both read the block's input
    mlp_norm: bool = False  # a norm between the MLP's output and the residual stream
    mask_array: bool = False  # attention wants its mask written out, not the word "causal"


def _gemma_scale(model, h):
    # bfloat16 first, as the models were trained
    return h * mx.array(model.args.hidden_size**0.5, mx.bfloat16).astype(h.dtype)


def _softcap(model, logits):
    cap = model.final_logit_softcapping
    return mx.tanh(logits / cap) * cap


_LLAMA = Architecture()

#: stem of mlx-lm's model file -> where things are
ARCHITECTURES: dict[str, Architecture] = {
    "llama": replace(_LLAMA, sliding="use_sliding", window="model.sliding_window"),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Architecture(
        layers="model.h", attention="attn", down="mlp.c_proj", embedding="model.wte",
        positions="model.wpe", norm="model.ln_f",
    ),
    "gemma2": replace(
        _LLAMA, embedding_scale=lambda model, h: h * model.args.hidden_size**0.5,
        logit_scale=_softcap, mlp_norm=True, mask_array=True,
    ),
    "gemma3_text": replace(
        _LLAMA, sliding="self_attn.is_sliding", window="model.window_size",
        embedding_scale=_gemma_scale, mlp_norm=True,
    ),
}


def model_type(model: nn.Module) -> str:
    """The stem of the mlx-lm file that defines the model, e.g. `llama` for a Mistral."""
    return type(model).__module__.rsplit(".", 1)[-1]


def check_type(kind: str) -> Architecture:
    """The row of a model type. Raises RomeError that lists the supported ones."""
    if kind not in ARCHITECTURES:
        raise RomeError(f"model type {kind!r} is not supported; supported are: "
                        + ", ".join(sorted(ARCHITECTURES)))
    return ARCHITECTURES[kind]


def architecture(model: nn.Module) -> Architecture:
    """The table's row for a loaded model. Raises RomeError for a model type without one."""
    return check_type(model_type(model))
