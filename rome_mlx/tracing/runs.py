"""The clean and the corrupted run of one fact, with everything that restoring needs."""

from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx

from ..models.decoder import Decoder, Prefix
from ..models.hooks import hooked


@dataclass
class Run:
    """States of tokens [begin, end of text) at every layer.

    inputs: of each layer, (rows, tokens, dim), and one more, the last layer's output;
    mlp, attn: module outputs, a list with one (rows, tokens, dim) a layer;
    prefixes: per layer, the keys and values of all tokens from 0 on.
    """

    begin: int
    inputs: list[mx.array]
    mlp: list[mx.array]
    attn: list[mx.array]
    prefixes: list[Prefix]

    def prefix(self, length: int) -> list[Prefix]:
        """Keys and values of the first `length` tokens, per layer."""
        return [p.upto(length) for p in self.prefixes]

    def part(self, rows: slice) -> "Run":
        """Some rows of the run."""
        prefixes = [Prefix(p.keys, p.values) for p in self.prefixes]
        for prefix, whole in zip(prefixes, self.prefixes, strict=True):
            prefix.new = tuple(x[rows] for x in whole.new)
        return Run(self.begin, *([x[rows] for x in states]
                                 for states in (self.inputs, self.mlp, self.attn)), prefixes)


def run(decoder: Decoder, embeddings: mx.array, begin: int = 0, prefixes=None) -> Run:
    """Run embeddings (rows, tokens, dim) of tokens from `begin` on, after `prefixes`."""
    prefixes = prefixes if prefixes is not None else decoder.prefixes()
    out = Run(begin, [], [], [], prefixes)
    with ExitStack() as stack:
        stack.enter_context(decoder.fast())
        for layer in range(len(decoder.layers)):
            for part, kept in (("mlp", out.mlp), ("attn", out.attn)):
                stack.enter_context(hooked(decoder.module(layer, part), after=_keep(kept)))
        h = decoder.enter(embeddings, begin)
        for layer, prefix in enumerate(prefixes):
            out.inputs.append(h)
            h = decoder.block(layer, h, prefix)
        out.inputs.append(h)
    mx.eval(out.inputs, out.mlp, out.attn, [p.new for p in prefixes])
    return out


def _keep(kept: list):
    def keep(x):
        kept.append(x)
        return x

    return keep
