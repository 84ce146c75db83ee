"""Small random models of any mlx-lm type, built from its own ModelArgs: no download."""

import importlib

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

VOCABULARY = 128

_COMMON = dict(
    hidden_size=32, num_hidden_layers=4, intermediate_size=48, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, layer_norm_eps=1e-5, vocab_size=VOCABULARY,
    head_dim=8, max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=True,
    attention_bias=False, mlp_bias=False, layer_norm_epsilon=1e-5, partial_rotary_factor=1.0,
)
_GPT = dict(n_embd=32, n_head=4, n_layer=4, n_positions=256, n_inner=64)
_SLIDING = ["sliding_attention", "full_attention"] * 2
_MINICPM = dict(dim_model_base=16, scale_depth=1.4, scale_emb=3.0, tie_word_embeddings=False)
_LATENT = dict(kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=4, qk_nope_head_dim=8,
               v_head_dim=8, num_key_value_heads=4)
#: two dense layers, then two mixtures of four experts
_MIXTURE = dict(
    n_routed_experts=4, n_shared_experts=1, num_experts=4, num_shared_experts=1,
    num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=2,
    mlp_only_layers=[0, 1], decoder_sparse_step=1, norm_topk_prob=True, n_group=1, topk_group=1,
    routed_scaling_factor=1.0, num_dense_layers=2, tie_word_embeddings=False)
_YARN = dict(type="yarn", rope_type="yarn", factor=2.0, mscale=1.0, mscale_all_dim=1.0,
             original_max_position_embeddings=128, beta_fast=32, beta_slow=1)
_LLAMA4_SCALE = dict(rope_theta=10000.0, rope_type="default", llama_4_scaling_beta=0.1,
                     original_max_position_embeddings=4)

#: what a model type needs beside, or instead of, the common arguments
ARGUMENTS = {
    "afmoe": {**_MIXTURE, "layer_types": _SLIDING, "sliding_window": 6},
    "apertus": dict(post_norm=False, qk_norm=True),
    "bailing_moe": _MIXTURE,
    "cohere2": dict(sliding_window=6, sliding_window_pattern=2),
    "deepseek": _MIXTURE,
    "deepseek_v2": {**_MIXTURE, **_LATENT, "rope_scaling": _YARN, "topk_method": "greedy"},
    "deepseek_v3": {**_MIXTURE, **_LATENT},
    "dots1": _MIXTURE,
    "ernie4_5": dict(use_bias=False),
    "ernie4_5_moe": {**_MIXTURE, "use_bias": False, "moe_num_experts": 4, "moe_k": 2,
                     "moe_layer_start_index": 2, "moe_num_shared_experts": 1},
    "exaone": dict(num_layers=4),
    "exaone4": dict(rope_scaling=None, sliding_window=6, sliding_window_pattern="LG",
                    layer_types=_SLIDING),
    "exaone_moe": {**_MIXTURE, "layer_types": _SLIDING, "sliding_window": 6,
                   "is_moe_layer": [False, False, True, True]},
    "gemma2": dict(query_pre_attn_scalar=8),
    "gemma3_text": dict(sliding_window=6, sliding_window_pattern=2, query_pre_attn_scalar=8),
    "gemma4_text": dict(sliding_window=6, layer_types=_SLIDING, num_kv_shared_layers=0,
                        hidden_size_per_layer_input=0, global_head_dim=16,
                        vocab_size_per_layer_input=VOCABULARY),
    "glm4_moe": {**_MIXTURE, "use_qk_norm": True, "rope_scaling": None},
    "glm4_moe_lite": {**_MIXTURE, **_LATENT},
    "gpt2": {**_GPT, "n_ctx": 256},
    "gpt_bigcode": _GPT,
    "gpt_neox": dict(rotary_emb_base=10000, rotary_pct=0.5),
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite": dict(logits_scaling=2.0, attention_multiplier=0.3, embedding_multiplier=3.0,
                    residual_multiplier=0.5),
    "internlm2": dict(rope_scaling=dict(type="dynamic", factor=2.0)),
    "internlm3": dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "Klear": _MIXTURE,
    "laguna": {**_MIXTURE, "layer_types": _SLIDING, "sliding_window": 6,
               "shared_expert_intermediate_size": 32,
               "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]},
    "lille-130m": dict(n_embd=96, n_head=4, n_kv_heads=2, n_layer=4, block_size=256),
    "llama4_text": dict(intermediate_size_mlp=64, no_rope_layers=[1, 1, 1, 0], use_qk_norm=True,
                        tie_word_embeddings=False),
    "mimo_v2_flash": {
        **_MIXTURE, "hybrid_layer_pattern": [0, 1, 0, 1], "moe_layer_freq": [0, 0, 1, 1],
        "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
        "sliding_window_size": 6, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-5, "swa_rope_theta": 10000.0, "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2, "v_head_dim": 16, "swa_head_dim": 8, "swa_v_head_dim": 16},
    "minicpm": _MINICPM,
    "minicpm3": {**_MINICPM, **_LATENT, "rope_scaling": dict(
        original_max_position_embeddings=128, short_factor=[1.0, 1.0], long_factor=[1.0, 2.0])},
    "ministral3": dict(rope_parameters=_LLAMA4_SCALE, sliding_window=6, layer_types=_SLIDING),
    "mistral4": {**_MIXTURE, **_LATENT, "rope_parameters": _LLAMA4_SCALE},
    "muse_glimmer": dict(sliding_window=6, layer_types=_SLIDING),
    "nemotron": dict(hidden_act="relu2", norm_eps=1e-5, partial_rotary_factor=0.5),
    "olmo3": dict(sliding_window=6, layer_types=_SLIDING),
    "openelm": dict(num_transformer_layers=4, model_dim=32, ffn_dim_divisor=32,
                    num_query_heads=[4] * 4, num_kv_heads=[2] * 4, ffn_multipliers=[2.0] * 4),
    "phi": dict(partial_rotary_factor=0.5),
    "plamo": dict(n_shared_head=2),
    "plamo3": dict(sliding_window=6, sliding_window_pattern=2),
    "qwen": dict(kv_channels=8, intermediate_size=128),
    "qwen3_moe": _MIXTURE,
    "seed_oss": dict(tie_word_embeddings=False),
    "solar_open": {**_MIXTURE, "use_qk_norm": True},
    "spark2_5": dict(sliding_window=6, layer_types=_SLIDING, rope_parameters={
        kind: dict(rope_theta=10000.0) for kind in ("sliding_attention", "full_attention")}),
    "stablelm": dict(use_qkv_bias=True, partial_rotary_factor=0.5, qk_layernorm=True),
    "step3p5": {**_MIXTURE, "num_attention_groups": 2, "layer_types": _SLIDING,
                "sliding_window": 6, "moe_num_experts": 4, "moe_top_k": 2,
                "share_expert_dim": 32, "moe_layers_enum": "2,3"},
    "youtu_llm": _LATENT,
}

#: wrapper -> the text model inside
WRAPPED = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "ministral3",
    "pixtral": "llama", "qwen2_vl": "qwen2", "qwen3_vl": "qwen3", "qwen3_vl_moe": "qwen3_moe",
    "kimi_k25": "deepseek_v3", "kimi_vl": "deepseek_v3",
}


def arguments(model_type: str, **overrides) -> dict:
    """The config.json of a tiny model."""
    if model_type in WRAPPED:
        inner = arguments(WRAPPED[model_type], **overrides)
        return {"model_type": model_type, "vocab_size": inner["vocab_size"], "text_config": inner}
    return {**_COMMON, **ARGUMENTS.get(model_type, {}), **overrides, "model_type": model_type}


def tiny_model(model_type: str, seed: int = 0, **overrides) -> nn.Module:
    """A model with random weights large enough that its layers matter, in eval mode."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(arguments(model_type, **overrides)))
    keys = iter(mx.random.split(mx.random.key(seed), 1000))
    scale = {1: 0.1, 2: 0.15}
    model.update(tree_map(
        lambda w: w + scale.get(w.ndim, 0.1) * mx.random.normal(w.shape, key=next(keys)),
        model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model
