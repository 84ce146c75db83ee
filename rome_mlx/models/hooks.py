"""Read or replace what goes into and comes out of any module, and always put it back.

MLX has no hooks and ignores `__call__` set on an instance, so a module's class is swapped for a
subclass made on the fly. Parameter names, gradients and quantized modules are not affected.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import mlx.core as mx
import mlx.nn as nn

from ..errors import RomeError

Transform = Callable[[mx.array], mx.array]


@contextmanager
def hooked(module: nn.Module, *, before: Transform | None = None, after: Transform | None = None):
    """Pass `module`'s first input through `before` and its output through `after`."""
    cls = type(module)

    def call(self, *args, **kwargs):
        if before is not None and args:
            args = (before(args[0]), *args[1:])
        elif before is not None:  # some models name their inputs
            first = next(iter(kwargs))
            kwargs = {**kwargs, first: before(kwargs[first])}
        out = cls.__call__(self, *args, **kwargs)
        return out if after is None else after(out)

    module.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    try:
        yield module
    finally:
        module.__class__ = cls


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, such as `model.layers.8.mlp`."""
    module = model
    for i, name in enumerate(path.split(".")):
        try:
            module = module[int(name)] if isinstance(module, list) else module[name]
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            module = None
        if not isinstance(module, nn.Module | list):
            known = ".".join(path.split(".")[:i]) or "the model"
            raise RomeError(f"no module {path!r}: {known} has no {name!r}; "
                            "list the paths with model.named_modules()")
    if isinstance(module, list):
        raise RomeError(f"{path!r} is a list of modules: add an index, such as {path}.0")
    return module


@contextmanager
def intercept(
    model: nn.Module,
    keep: Iterable[str] = (),
    replace: Mapping[str, Transform] | None = None,
    *,
    keep_inputs: Iterable[str] = (),
    replace_inputs: Mapping[str, Transform] | None = None,
    positions=None,
):
    """Read and replace module outputs (or inputs) by path while the context lasts.

        with rm.intercept(model, keep=["model.layers.8.mlp"],
                          replace={"model.layers.9.mlp": lambda out: out * 0}) as seen:
            logits = model(tokens)
        seen["model.layers.8.mlp"]                   # (rows, tokens, dim)

    keep, keep_inputs: paths whose last output, or first input, is put into the dict that the
        context yields, under the path, and under `path + ":input"` for inputs. What is kept of
        a replaced output is what it was replaced with.
    replace, replace_inputs: path -> function of the (rows, tokens, dim) array. With `positions`
        (an int, a slice or a list of token positions) it gets and returns these positions only.

    Contexts nest; the model is restored when the context ends, also after an error.
    Raises RomeError for a path that does not exist.
    """
    seen: dict[str, mx.array] = {}
    replace, replace_inputs = dict(replace or {}), dict(replace_inputs or {})
    keep, keep_inputs = _paths(keep), _paths(keep_inputs)

    def transform(path, replacements, kept, key):
        def apply(x):
            if path in replacements:
                x = _replaced(x, replacements[path], positions)
            if path in kept:
                seen[key] = x
            return x

        return apply if path in replacements or path in kept else None

    with ExitStack() as stack:
        for path in sorted({*keep, *replace, *keep_inputs, *replace_inputs}):
            stack.enter_context(hooked(
                find_module(model, path),
                before=transform(path, replace_inputs, keep_inputs, path + ":input"),
                after=transform(path, replace, keep, path),
            ))
        yield seen


def _paths(paths) -> set[str]:
    return {paths} if isinstance(paths, str) else set(paths)


def _replaced(x: mx.array, function: Transform, positions) -> mx.array:
    if positions is None:
        return function(x)
    index = positions if isinstance(positions, slice) else mx.array(positions).reshape(-1)
    out = mx.array(x)
    out[:, index] = function(x[:, index]).astype(x.dtype)
    return out
