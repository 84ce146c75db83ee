"""What every token of the vocabulary does to the keys that a low-rank change answers to.

A key is read at a subject's last token. What stands before reaches it only by the attention keys
and values that it leaves behind, so those of every token are read once, and how well a key fits
with a token put in front is estimated for the whole vocabulary by its slope along them.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack

import mlx.core as mx
import numpy as np
import scipy.cluster.vq
import scipy.linalg
from tqdm import tqdm

from ...models.decoder import Decoder, Prefix
from ...models.hooks import hooked
from ...models.tokens import encode
from ...models.weights import weight_shape
from .names import CONTEXTS, Rows, fit_of

_ROWS = 512  # run at once
_CENTERS = 64  # kinds of tokens, each with slopes of its own
_SHADOW = 64  # dimensions in which tokens are sorted into kinds


class Vocabulary:
    """Tokens that names are made of, behind the first context, up to the last changed layer.

    tokens: (n,) ids; texts: what each adds to the context; left: of each layer (n, w) float32, the
    attention keys and values of each; ends: of each row space (2, n, r), the `coordinates` of its
    key where it follows the context, and where the mean of all tokens is between.
    growing: whether `estimates` will be asked for, which `left` is held for.
    """

    def __init__(self, model, tokenizer, rows: Sequence[Rows], growing: bool = True,
                 progress: bool = False):
        self.decoder, self.tokenizer = Decoder(model), tokenizer
        self.context = CONTEXTS[0].removesuffix(" {}")
        self.ids = encode(tokenizer, self.context).ids
        self._context_length = len(tokenizer.decode(self.ids))
        size = min(len(tokenizer), weight_shape(self.decoder.embedding)[0])
        texts = [self.text([i]) for i in range(size)]
        self.tokens = np.array([i for i, text in enumerate(texts) if _within_a_name(text)])
        self.texts = [texts[i] for i in self.tokens]
        self.layers = [one.layer for one in rows]
        self._read_vocabulary(rows, growing, progress)
        if growing:
            self._sort()

    def text(self, ids: Sequence[int]) -> str:
        """What tokens add to the context."""
        return self.tokenizer.decode([*self.ids, *ids])[self._context_length:]

    def fits(self, rows: Sequence[Rows], suffixes: Sequence[tuple[int, ...]]) -> np.ndarray:
        """(suffixes,): the part of each one's key in the row spaces, mean over them. A suffix is
        the tokens that follow the context."""
        out = np.zeros(len(suffixes))
        for some in same_length(suffixes, _ROWS):
            keys = self._keys(self._prefixes, [suffixes[i] for i in some], len(self.ids))
            out[some] = fit_of([one.coordinates(np.float64(key))
                                for one, key in zip(rows, keys, strict=True)])
        return out

    def estimates(self, rows: Sequence[Rows], suffix: Sequence[int]) -> np.ndarray:
        """(n,): about what `fits` gives for the suffix with each token in front: the fit behind
        the mean of the tokens of its kind, and from there the slope."""
        def keys(*arrays):
            pairs = zip(arrays[::2], arrays[1::2], strict=True)
            return self._traced([Prefix(*pair) for pair in pairs],
                                [suffix] * len(self._kinds), len(self.ids) + 1)

        at = [np.array(key.astype(mx.float32), np.float64) for key in keys(*self._centered)]
        fits, slopes = zip(*(_slopes(one, key) for one, key in zip(rows, at, strict=True)),
                           strict=True)
        _, found = mx.vjp(keys, self._centered, [
            mx.array(np.float32(slope / len(rows))).astype(self._dtype) for slope in slopes])
        out = np.zeros(len(self.tokens), np.float32)
        by_layer = [np.concatenate([_last(k), _last(v)], axis=1)
                    for k, v in zip(found[::2], found[1::2], strict=True)]
        for i, (kind, fit) in enumerate(zip(self._kinds, np.mean(fits, axis=0), strict=True)):
            out[kind] = fit + sum(
                left[kind] @ slope[i] - mean[i] @ slope[i]
                for left, mean, slope in zip(self.left, self._means, by_layer, strict=True))
        return out

    def _read_vocabulary(self, rows: Sequence[Rows], growing: bool, progress: bool) -> None:
        prefixes = self.decoder.prefixes()[:max(self.layers) + 1]
        mx.eval(self.decoder.run(self.decoder.enter(self.decoder.embed([self.ids])), 0,
                                 len(prefixes), prefixes))
        self._prefixes = [prefix.upto(len(self.ids)) for prefix in prefixes]
        self._dtype = self._prefixes[0].keys.dtype
        widths = [sum(x.shape[1] * x.shape[3] for x in (one.keys, one.values))
                  for one in self._prefixes]
        self.left = [np.empty((len(self.tokens), width), np.float32) if growing else None
                     for width in widths]
        means = [np.zeros((1, width)) for width in widths]
        self.ends = [np.empty((2, len(self.tokens), one.basis.shape[1])) for one in rows]
        batches = [slice(i, min(i + _ROWS, len(self.tokens)))
                   for i in range(0, len(self.tokens), _ROWS)]
        bar = tqdm(total=2 * len(self.tokens), disable=not progress, file=sys.stderr, unit="token")
        for some in batches:
            bar.update(some.stop - some.start)
            self._end(0, rows, some, self._prefixes)
            for left, mean, one in zip(self.left, means, self._prefixes, strict=True):
                new = np.concatenate([_last(x) for x in one.new], axis=1)
                mean += new.sum(axis=0, dtype=np.float64) / len(self.tokens)
                if growing:
                    left[some] = new
        behind = self._behind([np.float32(mean) for mean in means])
        behind = [Prefix(*pair) for pair in zip(behind[::2], behind[1::2], strict=True)]
        for some in batches:
            bar.update(some.stop - some.start)
            self._end(1, rows, some, behind)
        bar.close()

    def _end(self, which: int, rows, some: slice, prefixes) -> None:
        keys = self._keys(prefixes, self.tokens[some, None].tolist(), prefixes[0].length)
        for ends, one, key in zip(self.ends, rows, keys, strict=True):
            ends[which, some] = one.coordinates(np.float64(key))

    def _sort(self) -> None:
        """Puts tokens of about the same attention keys and values, a kind, beside one another."""
        random, shadow = np.random.RandomState(0), 0.0
        for left in self.left:
            there = random.standard_normal((left.shape[1], _SHADOW)).astype(np.float32)
            shadow = shadow + left @ there / left.std()
        _, kinds = scipy.cluster.vq.kmeans2(shadow, min(_CENTERS, len(shadow)), minit="++", seed=0)
        order = np.argsort(kinds, kind="stable")
        self.tokens, self.texts = self.tokens[order], [self.texts[i] for i in order]
        self.ends = [end[:, order] for end in self.ends]
        for i, left in enumerate(self.left):
            self.left[i] = left[order]
        starts = np.flatnonzero(np.r_[True, np.diff(kinds[order]) > 0])
        self._kinds = [slice(*ends) for ends in
                       zip(starts, [*starts[1:], len(order)], strict=True)]
        self._means = [np.stack([left[kind].mean(axis=0) for kind in self._kinds])
                       for left in self.left]
        self._centered = self._behind(self._means)

    def _behind(self, left: Sequence[np.ndarray]) -> list[mx.array]:
        """Attention keys and values in turn, layer by layer, of the context and then what `left`
        (rows, w) says."""
        out = []
        for one, of in zip(self._prefixes, left, strict=True):
            width = one.keys.shape[1] * one.keys.shape[3]
            for x, part in ((one.keys, of[:, :width]), (one.values, of[:, width:])):
                new = mx.array(part).reshape(len(of), x.shape[1], 1, x.shape[3]).astype(x.dtype)
                out.append(mx.concatenate([mx.repeat(x, len(of), axis=0), new], axis=2))
        mx.eval(out)
        return out

    def _keys(self, prefixes, texts, offset: int) -> list[np.ndarray]:
        """Of each changed layer the keys (texts, d_in) at the last tokens."""
        with self.decoder.fast():
            return [np.array(key.astype(mx.float32))
                    for key in self._traced(prefixes, texts, offset)]

    def _traced(self, prefixes: list[Prefix], texts, offset: int) -> list[mx.array]:
        seen = {}
        with ExitStack() as stack:
            for layer in self.layers:
                def keep(x, layer=layer):
                    seen[layer] = x[:, -1]
                    return x

                stack.enter_context(hooked(self.decoder.module(layer, "down"), before=keep))
            h = self.decoder.enter(self.decoder.embed(texts), offset)
            self.decoder.run(h, 0, len(prefixes), prefixes)
        return [seen[layer] for layer in self.layers]


def same_length(suffixes: Sequence[tuple[int, ...]], most: int) -> list[list[int]]:
    """Indices of suffixes to run at once, each of one length."""
    by_length: dict[int, list[int]] = {}
    for i, suffix in enumerate(suffixes):
        by_length.setdefault(len(suffix), []).append(i)
    return [some[at: at + most] for some in by_length.values()
            for at in range(0, len(some), most)]


def _within_a_name(text: str) -> bool:
    return text.isprintable() and "\ufffd" not in text and (
        any(sign.isalnum() for sign in text) or (text and len(text.strip()) < 2))


def _last(x: mx.array) -> np.ndarray:
    """(rows, heads · d) of the last position of (rows, heads, positions, d)."""
    return np.array(x[:, :, -1].astype(mx.float32)).reshape(len(x), -1)


def _slopes(rows: Rows, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The norms (n,) of `coordinates` of keys (n, d_in), and their slopes by the keys."""
    white = scipy.linalg.solve_triangular(rows.root, keys.T, lower=True)
    length = np.linalg.norm(white, axis=0)
    parts = rows.basis.T @ white
    within = np.linalg.norm(parts, axis=0)
    slope = (rows.basis @ (parts / within) - white * (within / length**2)) / length
    return within / length, scipy.linalg.solve_triangular(rows.root, slope, lower=True, trans=1).T
