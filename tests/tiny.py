"""Small random models of any mlx-lm type, built from its own ModelArgs: no download."""

import importlib

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

VOCABULARY = 128

_COMMON = dict(
    hidden_size=32, num_hidden_layers=4, intermediate_size=48, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=VOCABULARY, head_dim=8,
    max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=True,
)

#: what a model type needs beside, or instead of, the common arguments
ARGUMENTS = {
    "gpt2": dict(n_ctx=256, n_embd=32, n_head=4, n_layer=4, n_positions=256,
                 layer_norm_epsilon=1e-5, vocab_size=VOCABULARY),
    "gemma2": dict(query_pre_attn_scalar=8),
    "gemma3_text": dict(sliding_window=6, sliding_window_pattern=2, query_pre_attn_scalar=8),
}


def tiny_model(model_type: str, seed: int = 0, **overrides) -> nn.Module:
    """A model with random weights large enough that its layers matter, in eval mode."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    arguments = {**_COMMON, **ARGUMENTS.get(model_type, {}), **overrides}
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict({**arguments, "model_type": model_type}))
    keys = iter(mx.random.split(mx.random.key(seed), 1000))
    scale = {1: 0.1, 2: 0.15}
    model.update(tree_map(
        lambda w: w + scale.get(w.ndim, 0.1) * mx.random.normal(w.shape, key=next(keys)),
        model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model
