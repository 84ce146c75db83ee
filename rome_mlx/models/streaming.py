"""A model that need not fit into memory: what was read of it is let go, and read again.

MLX reads the arrays of a lazily loaded model when they are first used, and then holds them for as
long as the model does. A streaming model is given fresh ones, not read yet, from time to time.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .applied import record_of

HELD = 2 << 30  # bytes of arrays that are held before they are let go


def streaming(model: nn.Module, again: Callable[[], nn.Module]) -> nn.Module:
    """Let a lazily loaded model go of what was read of it, wherever `let_go` is called.

    again: loads it anew, lazily.
    """
    object.__setattr__(model, "_rome_again", (again, mx.get_active_memory()))
    return model


def let_go(model: nn.Module, *used) -> None:
    """Of a streaming model whose arrays take more than `HELD`: have them read again when they are
    next used, but those that edits are applied to. used: arrays that were computed of them."""
    again, before = getattr(model, "_rome_again", (None, 0))
    if again is None:
        return
    mx.eval(used)
    if mx.get_active_memory() > before + HELD:
        edited = tuple(f"{path}." for path, module in model.named_modules()
                       if record_of(module) is not None)
        model.load_weights([(path, array) for path, array in tree_flatten(again().parameters())
                            if not path.startswith(edited)], strict=False)
        mx.clear_cache()
