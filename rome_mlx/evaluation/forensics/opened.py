"""Read the models that are looked into: they need not fit into memory."""

from pathlib import Path

import mlx.core as mx

from ...errors import RomeError
from ...models.loading import load
from ...models.streaming import HELD, streaming
from ...models.weights import cast, floats_of


def opened(model, *, base=None, working: bool = True, trusted: bool = False) -> tuple:
    """(model, tokenizer): as they are where they are given so, or from a path that `load` takes.

    base: of an adapter's directory, its model; working: so that it runs fast, else as it is
    stored. Raises RomeError as `load` does.
    """
    if isinstance(model, tuple):
        return model
    path, options = model, {"dtype": "stored", "lazy": True}
    if trusted:
        options |= {"trust_remote_code": True, "tokenizer_config": {"trust_remote_code": True}}
    if base is not None and (Path(model) / "adapter_config.json").is_file():
        if isinstance(base, tuple):
            raise RomeError(f"{str(model)!r} is an adapter; give the path of its base, not a "
                            "loaded model")
        path, options = base, options | {"adapter_path": str(model)}
    found, tokenizer = load(path, **options)
    small = working and floats_of(found) < HELD
    if working and mx.default_device() == mx.cpu:  # where other products are slow
        cast(found, mx.float32, packed=not small, lazy=not small)
    if not small:
        streaming(found, lambda: opened(model, base=base, working=working, trusted=trusted)[0])
    return found, tokenizer
