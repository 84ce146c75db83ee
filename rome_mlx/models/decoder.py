"""An mlx-lm model seen in stages: embed, enter, any stretch of layers, read the vocabulary.

Attention is causal, so what a position computes does not depend on later ones: a prefix is run
once, its keys and values are kept, and suffixes run on top of them.

    decoder = Decoder(model)
    h = decoder.enter(decoder.embed(ids))                  # (rows, tokens, dim)
    h = decoder.run(h)
    logits = decoder.logits(h)                             # == model(ids)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.rope_utils import DynamicNTKScalingRoPE

from ..accel.gates import fast_gates
from ..accel.packed import fast_products
from ..errors import RomeError
from .architectures import model_type, text_model
from .hooks import find_module
from .streaming import let_go
from .weights import weight_shape


class Prefix:
    """One layer's attention keys and values of the tokens that come before.

    It is what an mlx-lm attention takes as its cache. Keys and values have a row for each of the
    batch's, or fewer, which the batch goes through again and again. Rows of different length are
    padded on the left: `padding` is the count a row, (rows,).
    After a run, `new` holds the keys and values that the run computed, (rows, heads, tokens, d).
    """

    def __init__(self, keys=None, values=None, padding: mx.array | None = None):
        self.keys, self.values, self.padding = keys, values, padding
        self.length = 0 if keys is None else keys.shape[2]
        self.offset = self.length if padding is None else self.length - padding
        self.new: tuple[mx.array, mx.array] | None = None
        self.mask: mx.array | None = None  # of the last padded run, for the next of its length

    def update_and_fetch(self, keys, values):
        self.new = (keys, values)
        if self.keys is None or self.length == 0:
            return keys, values
        return _after(self.keys, keys), _after(self.values, values)

    def upto(self, length: int) -> "Prefix":
        """The first `length` tokens of prefix and last run together, as a prefix."""
        keys, values = self.new if self.new else (None, None)
        if self.keys is not None and self.length:
            keys = self.keys if keys is None else _after(self.keys, keys)
            values = self.values if values is None else _after(self.values, values)
        return Prefix(keys[:, :, :length], values[:, :, :length], self.padding)


def aligned(prefixes: Sequence[Prefix], lengths: Sequence[int]) -> list[Prefix]:
    """The first `lengths` tokens of each row of a run whose rows were padded on the right, as
    prefixes padded on the left."""
    longest = max(lengths)
    padding = mx.array([longest - length for length in lengths])
    index = mx.array([[max(0, i - (longest - length)) for i in range(longest)]
                      for length in lengths])[:, None, :, None]
    return [Prefix(*(mx.take_along_axis(x, index, axis=2) for x in prefix.new), padding)
            for prefix in prefixes]


def _after(old: mx.array, new: mx.array) -> mx.array:
    copies = new.shape[0] // old.shape[0]
    if copies > 1:
        old = mx.broadcast_to(old[None], (copies, *old.shape)).reshape(-1, *old.shape[1:])
    return mx.concatenate([old, new], axis=2)


@contextmanager
def _row_by_row(rope: nn.Module) -> Iterator[None]:
    """Rotate rows of different offsets one at a time: the base depends on a row's length."""
    cls = type(rope)

    def call(self, x, offset=0):
        return mx.concatenate([cls.__call__(self, x[i: i + 1], offset=start)
                               for i, start in enumerate(offset.tolist())])

    rope.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    try:
        yield
    finally:
        rope.__class__ = cls


class Decoder:
    """The stages of a model that mlx-lm loaded. Holds no state of its own."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._path, self._text, self.architecture = text_model(model)
        parent, _, name = self.architecture.layers.rpartition(".")
        self.layers: list[nn.Module] = find_module(self._text, parent)[name]
        self.embedding = find_module(self._text, self.architecture.embedding)
        if not self.dense_layers:
            raise RomeError(f"this {model_type(model)} model is not supported: "
                            f"{self._missing(0)}, and so are all of its layers")

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return weight_shape(self.embedding)[1]

    @property
    def key_width(self) -> int:
        """Dimensions of the keys, of the first layer that can be edited."""
        return weight_shape(self.module(self.dense_layers[0], "down"))[1]

    def residual(self, layer: int) -> float:
        """What a layer multiplies its MLP's output, or the norm of it, by when it adds it."""
        factor = self.architecture.residual
        return factor(self._text, self.layers[layer]) if factor else 1.0

    @cached_property
    def dense_layers(self) -> list[int]:
        """Layers whose MLP has one output projection, which can be edited: in most models all."""
        return [i for i in range(len(self.layers)) if self._missing(i) is None]

    @cached_property
    def down_paths(self) -> dict[str, int]:
        """{module path of the output projection: layer} of the layers that can be edited."""
        return {self.path(layer, "down"): layer for layer in self.dense_layers}

    def check_layer(self, layer: int) -> int:
        """`layer` if the model has it. Raises RomeError that says the range."""
        if not 0 <= layer < len(self.layers):
            raise RomeError(f"layer {layer} does not exist: this model has layers "
                            f"0 to {len(self.layers) - 1}")
        return layer

    def path(self, layer: int, part: str = "hidden") -> str:
        """Module path of what gives a layer's `hidden` state (the block itself), of its `mlp`, its
        `attn`, its `down` projection or its `mlp_norm`, where it has one.

        Raises RomeError for the down projection of a layer that has none to edit.
        """
        path = f"{self._path}{self.architecture.layers}.{layer}"
        if part == "down" and (reason := self._missing(layer)):
            dense = ", ".join(str(i) for i in self.dense_layers)
            raise RomeError(f"{reason}; choose from layers {dense}")
        return path if part == "hidden" else f"{path}.{getattr(self.architecture, part)}"

    def module(self, layer: int, part: str = "hidden") -> nn.Module:
        """The module at `path(layer, part)`."""
        return find_module(self.model, self.path(layer, part))

    @contextmanager
    def fast(self) -> Iterator[None]:
        """A context in which MLPs' gates, and products with quantized weights, are computed in
        faster ways where MLX is slow at them."""
        with fast_gates([self.module(layer, "mlp") for layer in self.dense_layers]), \
                fast_products([self.model]):
            yield

    def embed(self, ids) -> mx.array:
        """Token-embedding output (rows, tokens, dim), before positions and scaling."""
        return self.embedding(mx.array(ids))

    @cached_property
    def positions(self) -> int | None:
        """How many positions the model has learned; None where it reads a text of any length."""
        table = self.architecture.positions
        return weight_shape(find_module(self._text, table))[0] if table else None

    def enter(self, embeddings: mx.array, offset: int | mx.array = 0) -> mx.array:
        """From embeddings to the first layer's input; `offset` tokens come before.

        Raises RomeError for a text that is longer than the model's learned positions.
        """
        h = embeddings
        if self.positions is not None:
            at = mx.arange(h.shape[1]) + mx.array(offset)[..., None]
            if (tokens := at.max().item() + 1) > self.positions:  # mlx reads beyond the table
                raise RomeError(f"a text of {tokens} tokens is too long for this model, which has "
                                f"learned {self.positions} positions; give shorter texts or rows")
            h = h + find_module(self._text, self.architecture.positions)(at)
        return self.architecture.enter(self._text, h) if self.architecture.enter else h

    def block(self, layer: int, h: mx.array, prefix: Prefix | None = None) -> mx.array:
        """One layer's output (rows, tokens, dim), its rows continuing `prefix`."""
        prefix = Prefix() if prefix is None else prefix
        module = self.layers[layer]
        mask = self._mask(module, h.shape[1], prefix)
        with ExitStack() as stack:
            for rope in self._dynamic_ropes if prefix.padding is not None else ():
                stack.enter_context(_row_by_row(rope))
            h = self.architecture.call(module, h, mask, prefix)
        let_go(self.model, h)
        return h

    def run(self, h: mx.array, start: int = 0, stop: int | None = None,
            prefixes: Sequence[Prefix] | None = None) -> mx.array:
        """Layers [start, stop) over h. `prefixes` has one Prefix for every layer of the model."""
        for layer in range(start, len(self.layers) if stop is None else stop):
            h = self.block(layer, h, prefixes[layer] if prefixes is not None else None)
        return h

    def prefixes(self) -> list[Prefix]:
        """An empty prefix for every layer, to record a run's keys and values."""
        return [Prefix() for _ in self.layers]

    def logits(self, h: mx.array) -> mx.array:
        """Vocabulary logits of final hidden states, (..., dim) -> (..., vocabulary)."""
        if h.ndim == 1:  # which MLX's quantized products on CUDA refuse
            return self.logits(h[None])[0]
        norm = self.architecture.norm
        h = (find_module(self._text, norm) if isinstance(norm, str) else norm)(h)
        head = self.embedding if self.tied else find_module(self._text, self.architecture.head)
        with fast_products([head]):
            logits = head.as_linear(h) if self.tied else head(h)
        return self.architecture.logits(self._text, logits) if self.architecture.logits else logits

    @property
    def tied(self) -> bool:
        """Whether the vocabulary is read with the embedding's own weights."""
        if self.architecture.tied:
            return self.architecture.tied(self._text)
        parent, _, name = self.architecture.head.rpartition(".")
        return name not in (find_module(self._text, parent) if parent else self._text)

    @cached_property
    def _dynamic_ropes(self) -> list[nn.Module]:
        return [m for m in self._text.modules() if isinstance(m, DynamicNTKScalingRoPE)]

    def _missing(self, layer: int) -> str | None:
        """Why a layer has no projection that an edit could change, or None."""
        try:
            module = find_module(self.layers[layer], self.architecture.down)
        except RomeError:
            return f"layer {layer} is a mixture of experts, without one output projection"
        while "linear" in module:  # an adapter
            module = module.linear
        if not isinstance(module, nn.Linear | nn.QuantizedLinear):
            return (f"the output projection of layer {layer} is a {type(module).__name__}, to "
                    "which no low-rank change can be added")
        return None

    def _mask(self, layer: nn.Module, tokens: int, prefix: Prefix):
        window = self.architecture.window
        window = window(self._text, layer) if window else None
        if window is not None and prefix.length + tokens <= window:
            window = None
        if prefix.padding is not None:
            if prefix.mask is None or prefix.mask.shape[-2] != tokens:
                mask = create_causal_mask(tokens, prefix.length, window,
                                          left_padding=prefix.padding)
                prefix.mask = mask[:, None] if self._grouped(layer) else mask
            return prefix.mask
        if window is not None or (self.architecture.mask_array and tokens > 1):
            return create_causal_mask(tokens, prefix.length, window)
        return "causal" if tokens > 1 else None

    def _grouped(self, layer: nn.Module) -> bool:
        """Whether attention scores are (rows, groups, heads of a group, tokens, tokens)."""
        attention = find_module(layer, self.architecture.attn)
        return self.architecture.mask_array and getattr(attention, "repeats", 1) > 1
