"""One table: where a model type keeps its layers, MLPs, attentions and vocabulary.

A row is all it takes to support a model. Keys are the stems of mlx-lm's model files; paths are
as in `model.named_modules()`, layer parts relative to the layer. What has no row has a reason.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..errors import RomeError
from .hooks import find_module
from .refused import NO_ROW, REFUSED

Function = Callable[[nn.Module, mx.array], mx.array]  # (model, array) -> array


@dataclass(frozen=True)
class Architecture:
    """Where things are in a model, and the traits of its arithmetic that matter here.

    Functions are given the model that mlx-lm builds for the type (inside a wrapper, the inner
    one), or one of its layers.
    """

    layers: str = "model.layers"
    mlp: str = "mlp"
    attn: str = "self_attn"  # the module whose output is the attention's
    down: str = "mlp.down_proj"  # the MLP's output projection: its input is ROME's key
    embedding: str = "model.embed_tokens"
    positions: str | None = None  # learned positions, added to the embedding
    norm: str | Callable[[mx.array], mx.array] = "model.norm"  # before the vocabulary
    head: str = "lm_head"  # where absent, the embedding read backwards
    tied: Callable[[nn.Module], bool] | None = None  # where a head is there, but not read
    enter: Function | None = None  # embeddings to what the first layer reads
    logits: Function | None = None  # of what the head says
    window: Callable[[nn.Module, nn.Module], int | None] | None = None  # (model, layer) -> tokens
    residual: Callable[[nn.Module, nn.Module], float] | None = None  # (model, layer): multiplies
    # what the layer adds
    parallel: str = ""  # attention and MLP both read the block's input: "always" or "by config"
    mlp_norm: str | None = None  # an RMS norm between the MLP's output and the residual stream
    mask_array: bool = False  # attention wants its mask written out, not the word "causal"
    mixture: bool = False  # some layers are mixtures of experts, which have no one projection
    call: Callable = lambda layer, h, mask, prefix: layer(h, mask, prefix)
    refuse: Callable[[nn.Module], str | None] | None = None  # why this very model is not supported

    @property
    def traits(self) -> list[str]:
        """What sets the type apart from a plain Llama, in words."""
        return [name for name, there in {
            "learned positions": self.positions, "scaled or normed embeddings": self.enter,
            "sliding windows": self.window, "norm after the MLP": self.mlp_norm,
            f"parallel attention and MLP ({self.parallel})": self.parallel,
            "residual multiplier": self.residual, "scaled or capped logits": self.logits,
            "mixture: dense layers only": self.mixture,
            "some configurations only": self.refuse}.items() if there]


@dataclass(frozen=True)
class Wrapper:
    """A multimodal model around a text model: at `path`, of its own type or, where the wrapper's
    file defines it anew, of type `of`."""

    path: str = "language_model"
    of: str | None = None

    @property
    def traits(self) -> list[str]:
        return [f"text model under {self.path}" + (f", as {self.of}" if self.of else "")]


def _by_flag(flag: str, length: str):
    """The window of layers whose `flag` is true: the model's attribute `length`."""
    return lambda model, layer: attrgetter(length)(model) if attrgetter(flag)(layer) else None


def _softcap(cap: Callable[[nn.Module], float]) -> Function:
    return lambda model, logits: mx.tanh(logits / cap(model)) * cap(model)


def _rms(h: mx.array, eps: float = 1e-5) -> mx.array:
    return mx.fast.rms_norm(h, None, eps)


def _gemma3_enter(model, h):
    # bfloat16 first, as the models were trained
    return h * mx.array(model.args.hidden_size**0.5, mx.bfloat16).astype(h.dtype)


def _minicpm_logits(model, logits):
    args = model.args
    tied = args.tie_word_embeddings
    return logits if tied else logits / (args.hidden_size / args.dim_model_base)


def _muse_logits(model, logits):
    cap = model.args.final_logit_softcapping
    return mx.tanh(logits * model.args.output_multiplier / cap) * cap


def _gemma4_logits(model, logits):
    cap = model.final_logit_softcapping
    return logits if cap is None else mx.tanh(logits / cap) * cap


def _gemma4_refusal(model):
    args = model.args
    if args.hidden_size_per_layer_input:
        return "every layer reads the tokens again (per-layer inputs)"
    if args.num_kv_shared_layers:
        return "its upper layers attend with the keys and values of a lower one"
    return "every layer adds a mixture of experts" if args.enable_moe_block else None


def _mistral4_call(layer, h, mask, prefix):
    """Its attention is told how much to scale queries at each position."""
    rope = layer.self_attn.args.rope_parameters
    at = mx.arange(h.shape[1]) + mx.array(prefix.offset)[..., None]  # ([rows,] tokens)
    chunk = mx.floor(at / rope["original_max_position_embeddings"])
    scale = (1 + rope["llama_4_scaling_beta"] * mx.log(1 + chunk))[..., None].astype(h.dtype)
    return layer(h, scale[:, None] if scale.ndim == 3 else scale, mask, prefix)


_PLAIN = Architecture()
_SCALED = replace(_PLAIN, enter=lambda model, h: h * model.args.hidden_size**0.5)
_MIXTURE = replace(_PLAIN, mixture=True)
_LATENT = replace(_MIXTURE, mask_array=True)  # DeepSeek-V3's attention, over compressed keys
_GPT = Architecture(layers="transformer.h", attn="attn", down="mlp.c_proj",
                    embedding="transformer.wte", norm="transformer.ln_f")
_COHERE = replace(_PLAIN, parallel="always",
                  logits=lambda model, logits: logits * model.args.logit_scale)
_MINICPM = replace(
    _PLAIN, enter=lambda model, h: h * model.args.scale_emb, logits=_minicpm_logits,
    residual=lambda model, layer: model.args.scale_depth / model.args.num_hidden_layers**0.5)
_AFTER = "post_feedforward_layernorm"
_FEED_FORWARD = replace(_PLAIN, mlp="feed_forward", down="feed_forward.down_proj")

#: stem of mlx-lm's model file -> where things are
ARCHITECTURES: dict[str, Architecture] = {
    "llama": replace(_PLAIN, window=_by_flag("use_sliding", "model.sliding_window")),
    "qwen2": _PLAIN, "qwen3": _PLAIN, "ernie4_5": _PLAIN, "apertus": _PLAIN, "glm": _PLAIN,
    "hunyuan_v1_dense": _PLAIN, "internlm3": _PLAIN, "mimo": _PLAIN, "nemotron": _PLAIN,
    "phi3": _PLAIN, "seed_oss": _PLAIN, "smollm3": _PLAIN, "telechat3": _PLAIN,
    "youtu_llm": _PLAIN, "minicpm": _MINICPM, "minicpm3": _MINICPM,
    "helium": replace(_PLAIN, tied=lambda model: model.args.tie_word_embeddings),
    "nanbeige": replace(_PLAIN, refuse=lambda model: (
        "its layers run several times over (num_loops)" if model.model.num_loops > 1 else None)),
    "ministral3": replace(
        _PLAIN, window=_by_flag("use_sliding", "model.sliding_window"),
        call=lambda layer, h, mask, prefix: layer(h, None, mask, prefix)),
    "gpt2": replace(_GPT, layers="model.h", embedding="model.wte", positions="model.wpe",
                    norm="model.ln_f"),
    "gpt_bigcode": replace(_GPT, positions="transformer.wpe"),
    "gptj": replace(_GPT, layers="model.h", embedding="model.wte", norm="model.ln_f",
                    down="mlp.fc_out", parallel="always"),
    "gpt_neox": Architecture(
        layers="model.h", attn="attention", down="mlp.dense_4h_to_h",
        embedding="model.embed_in", norm="model.final_layer_norm", head="model.embed_out",
        parallel="by config"),
    "qwen": _GPT,
    "exaone": replace(_GPT, attn="attn.attention"),
    "nanochat": replace(_GPT, enter=lambda model, h: _rms(h), norm=_rms,
                        logits=_softcap(lambda model: 15.0)),
    "phi": replace(_PLAIN, down="mlp.fc2", norm="model.final_layernorm", parallel="always"),
    "starcoder2": replace(_PLAIN, down="mlp.c_proj"),
    "stablelm": replace(_PLAIN, parallel="by config"),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, window=_by_flag("self_attn.use_sliding_window",
                                                "model.window_size")),
    "granite": replace(
        _PLAIN, enter=lambda model, h: h * model.args.embedding_multiplier,
        logits=lambda model, logits: logits / model.args.logits_scaling,
        residual=lambda model, layer: model.args.residual_multiplier),
    "gemma": _SCALED,
    "gemma2": replace(_SCALED, mlp_norm=_AFTER, mask_array=True,
                      logits=_softcap(lambda model: model.final_logit_softcapping)),
    "gemma3_text": replace(_PLAIN, enter=_gemma3_enter, mlp_norm=_AFTER,
                           window=_by_flag("self_attn.is_sliding", "model.window_size")),
    "gemma4_text": replace(
        _SCALED, attn="self_attn.o_proj", mlp_norm=_AFTER, logits=_gemma4_logits,
        residual=lambda model, layer: layer.layer_scalar.item(),
        window=_by_flag("self_attn.is_sliding", "model.window_size"), refuse=_gemma4_refusal,
        call=lambda layer, h, mask, prefix: layer(h, mask, prefix)[0]),
    "glm4": replace(_PLAIN, mlp_norm="post_mlp_layernorm"),
    "olmo2": replace(_PLAIN, mlp_norm=_AFTER),
    "olmo3": replace(_PLAIN, mlp_norm=_AFTER, window=lambda model, layer: (
        None if model.args.layer_types[layer.self_attn.layer_idx] == "full_attention"
        else model.args.sliding_window)),
    "exaone4": replace(_PLAIN, mlp_norm=_AFTER,
                       window=_by_flag("self_attn.is_local", "model.window_size")),
    "muse_glimmer": replace(
        _PLAIN, enter=lambda model, h: _rms(h, model.args.rms_norm_eps), mlp_norm=_AFTER,
        logits=_muse_logits, window=_by_flag("self_attn.is_sliding", "model.window")),
    "internlm2": replace(_FEED_FORWARD, attn="attention", down="feed_forward.w2",
                         embedding="model.tok_embeddings", head="output"),
    "llama4_text": replace(_FEED_FORWARD, head="output"),
    "lille-130m": replace(
        _FEED_FORWARD, layers="transformer.layers", attn="attention",
        embedding="transformer.tok_embeddings", norm="transformer.norm"),
    "openelm": Architecture(
        layers="transformer.layers", mlp="ffn", attn="attn", down="ffn.proj_2",
        embedding="transformer.token_embeddings", norm="transformer.norm"),
    "plamo": replace(_PLAIN, layers="model.layers.layers", parallel="always"),
    "plamo3": replace(
        _PLAIN, layers="model.layers.layers", attn="mixer", mlp_norm="post_mlp_norm",
        window=lambda model, layer: (None if layer.full_attn
                                     else model.config.window_size + 1)),
    "spark2_5": replace(_PLAIN, embedding="model.embedding",
                        window=_by_flag("is_sliding", "args.sliding_window")),
    "deepseek": _MIXTURE, "deepseek_v2": _MIXTURE, "dots1": _MIXTURE, "glm4_moe": _MIXTURE,
    "solar_open": _MIXTURE, "Klear": _MIXTURE, "ernie4_5_moe": _MIXTURE, "qwen3_moe": _MIXTURE,
    "deepseek_v3": _LATENT, "glm4_moe_lite": _LATENT,
    "mistral4": replace(_MIXTURE, call=_mistral4_call),
    "bailing_moe": replace(_MIXTURE, attn="attention", embedding="model.word_embeddings"),
    "afmoe": replace(_MIXTURE, mlp_norm="post_mlp_layernorm",
                     enter=lambda model, h: (h * model.args.hidden_size**0.5
                                             if model.model.mup_enabled else h),
                     window=_by_flag("use_sliding", "model.sliding_window")),
    "exaone_moe": replace(_MIXTURE, window=_by_flag("is_sliding_window", "model.window_size")),
    "laguna": replace(_MIXTURE, window=_by_flag("use_sliding", "model.sliding_window")),
    "mimo_v2_flash": replace(_MIXTURE, window=_by_flag("is_sliding_window",
                                                       "model.sliding_window_size")),
    "step3p5": replace(_MIXTURE, window=_by_flag("is_sliding", "args.sliding_window")),
}

WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper(), "gemma4": Wrapper(), "mistral3": Wrapper(), "pixtral": Wrapper(),
    "qwen2_vl": Wrapper(), "qwen3_vl": Wrapper(), "qwen3_vl_moe": Wrapper(),
    "kimi_k25": Wrapper(of="deepseek_v3"), "kimi_vl": Wrapper(of="deepseek_v3"),
}

SUPPORTED: dict[str, Architecture | Wrapper] = {**ARCHITECTURES, **WRAPPERS}


def model_type(model: nn.Module) -> str:
    """The stem of the mlx-lm file that defines the model, e.g. `llama` for a Mistral."""
    return type(model).__module__.rsplit(".", 1)[-1]


def check_type(kind: str) -> Architecture | Wrapper:
    """The row of a model type. Raises RomeError that says why there is none, and lists them."""
    if kind not in SUPPORTED:
        reason = REFUSED.get(kind, NO_ROW)
        raise RomeError(f"model type {kind!r} is not supported: {reason}; supported are: "
                        + ", ".join(sorted(SUPPORTED)))
    return SUPPORTED[kind]


@cache
def installed_types() -> frozenset[str]:
    """Stems of the files in the installed mlx_lm/models that define a model. Nothing is imported:
    one of them ends Python where another package is missing."""
    found = set()
    for path in Path(find_spec("mlx_lm.models").origin).parent.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = ([alias.asname or alias.name for alias in node.names]
                     if isinstance(node, ast.ImportFrom) else [getattr(node, "name", None)])
            if "Model" in names:
                found.add(path.stem)
    return frozenset(found)


def text_model(model: nn.Module) -> tuple[str, nn.Module, Architecture]:
    """(path, module, row) of the text model in a loaded model: ("", model, row) of a plain one.

    Raises RomeError for a model type without a row, and for a model that its row refuses.
    """
    kind, path, inner = model_type(model), "", model
    row = check_type(kind)
    if isinstance(row, Wrapper):
        path, inner = row.path + ".", find_module(model, row.path)
        kind = row.of or model_type(inner)
        row = check_type(kind)
    reason = row.refuse(inner) if row.refuse else None
    if reason:
        raise RomeError(f"this {kind} model is not supported: {reason}")
    return path, inner, row
