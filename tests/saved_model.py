"""A tiny model as a directory that mlx-lm loads, for runs in processes of their own."""

import json
from pathlib import Path

import mlx.core as mx
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from tiny import _COMMON, ARGUMENTS, tiny_model


def save_tiny(path: Path, model_type: str = "llama", **overrides) -> Path:
    """Write `tiny_model(model_type, **overrides)` and its tokenizer."""
    path.mkdir(parents=True)
    model = tiny_model(model_type, **overrides)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    arguments = {**_COMMON, **ARGUMENTS.get(model_type, {}), **overrides}
    (path / "config.json").write_text(json.dumps({**arguments, "model_type": model_type}))
    FakeTokenizer().save_pretrained(path)
    return path
