"""C = E[k kᵀ] over a corpus, for many layers in one pass."""

import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from ..architectures import model_type
from ..decoder import Decoder
from ..errors import RomeError
from ..fingerprint import fingerprint
from ..hooks import hooked
from ..loading import describe, weight_shape
from . import store
from .corpus import check_corpus, rows

_CHECKPOINT_SECONDS = 45


@dataclass
class SecondMoment:
    """Running E[k kᵀ] of MLP keys, not centred, as ROME uses it (paper, section 3.1).

        moment = SecondMoment(dim=1536)
        moment.add(keys)                 # (n, dim) float32
        C = moment.value()               # (dim, dim) float64

    A batch's products are summed in float32, by the matrix product; batches in float64, so the
    error does not grow with the number of tokens. Takes 8 dim² bytes.
    """

    dim: int
    count: int = 0
    total: np.ndarray = field(default=None, repr=False)
    keys: np.ndarray = field(default=None, repr=False)  # Σ k

    def __post_init__(self):
        if self.total is None:
            self.total, self.keys = np.zeros((self.dim, self.dim)), np.zeros(self.dim)

    def add(self, keys: mx.array) -> None:
        """Add keys (n, dim)."""
        keys = keys.astype(mx.float32)
        self.add_sums(keys.shape[0], keys.T @ keys, keys.sum(axis=0))

    def add_sums(self, count: int, products: mx.array, keys: mx.array) -> None:
        """Add Σ k kᵀ (dim, dim) and Σ k (dim,) of `count` keys."""
        self.total += np.array(products)
        self.keys += np.array(keys)
        self.count += count

    def value(self) -> np.ndarray:
        """(dim, dim) float64, symmetric."""
        return (self.total + self.total.T) / (2 * max(1, self.count))

    def mean(self) -> np.ndarray:
        """(dim,) float64."""
        return self.keys / max(1, self.count)


class Moments(dict):
    """{layer: SecondMoment}, with what they were counted on in `about[layer]`, a dict."""

    def __init__(self, moments=(), about=None):
        super().__init__(moments)
        self.about: dict[int, dict] = about or {}


def second_moments(model, tokenizer, layers, corpus: str | Path = "wikitext",
                   tokens: int = 100_000, *, row_length: int = 256, batch: int = 8,
                   seed: int = 0, output: str | Path | None = None,
                   progress: bool = False) -> Moments:
    """Second moments of the down projections' inputs at `layers`, over a corpus.

    tokens: counted up to whole rows of `row_length` (the rows are the documents, packed).
    output: a directory with one file a layer. A file for the same model, corpus, row length and
    seed is taken up where it stopped, also to extend it; it is saved every 45 seconds.
    Raises RomeError for layers out of range, a corpus that cannot be read or is too short, and
    files in `output` that are of something else. The model stays as it was.
    """
    decoder = Decoder(model)
    layers = sorted({decoder.check_layer(layer) for layer in layers})
    if not layers or tokens < 1 or row_length < 1 or batch < 1:
        raise RomeError("give at least one layer, and counts of tokens and rows above 0")
    check_corpus(corpus)
    if output is not None:
        store.check_directory(output)
    moments = Moments(about={
        layer: {**about_layer(decoder, tokenizer, layer), "corpus": str(corpus),
                "row_length": row_length, "seed": seed} for layer in layers})
    for layer in layers:
        moments[layer] = _begun(moments.about[layer], output)
    _count(decoder, tokenizer, moments, -(-tokens // row_length), batch, output, progress)
    return moments


def about_layer(decoder: Decoder, tokenizer, layer: int) -> dict:
    """What identifies the keys of a layer: model, layer, module path, fingerprint, width."""
    module = decoder.module(layer, "down")
    return {"model": model_name(decoder.model, tokenizer), "layer": layer,
            "module": decoder.path(layer, "down"), "dim": weight_shape(module)[1],
            "fingerprint": fingerprint(module)}


def model_name(model, tokenizer) -> str:
    """A hub id, or the last part of a local directory's path: what to call the model elsewhere."""
    path = describe(model, tokenizer)["path"] or model_type(model)
    return Path(path).name if Path(path).is_dir() else path


def _begun(about: dict, output) -> SecondMoment:
    path = store.layer_path(output, about["layer"]) if output is not None else None
    if path is None or not path.exists():
        return SecondMoment(about["dim"])
    moment, found = store.read(path)
    store.check(path, found, about, ("corpus", "row_length", "seed"))
    return SecondMoment(about["dim"], moment.count, moment.total, moment.keys)


def _count(decoder, tokenizer, moments, wanted, batch, output, progress) -> None:
    """Count `wanted` rows; layers that stopped earlier catch up with the others."""
    about = next(iter(moments.about.values()))
    length = about["row_length"]
    done = min(m.count for m in moments.values()) // length
    source = rows(decoder.model, tokenizer, about["corpus"], length, seed=about["seed"], skip=done)
    saved = time.monotonic()
    with tqdm(total=wanted * length, initial=min(done, wanted) * length, unit="token",
              unit_scale=True, disable=not progress, file=sys.stderr) as bar:
        while done < wanted:
            ahead = [m.count // length for m in moments.values() if m.count > done * length]
            group = list(islice(source, min([batch, wanted - done, *(n - done for n in ahead)])))
            if not group:
                break
            _add_rows(decoder, mx.array(group),
                      {layer: m for layer, m in moments.items() if m.count == done * length})
            done += len(group)
            bar.update(len(group) * length)
            if output is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                store.write_all(output, moments)
                saved = time.monotonic()
    if done == 0:
        raise RomeError(f"the corpus {about['corpus']!r} has fewer than {length} tokens; "
                        "give a longer text or shorter rows")
    if output is not None:
        store.write_all(output, moments)
    if done < wanted:
        print(f"rome-mlx: the corpus ended after {done * length:,} tokens", file=sys.stderr)


def _add_rows(decoder: Decoder, ids: mx.array, moments: dict[int, SecondMoment]) -> None:
    h, start = decoder.enter(decoder.embed(ids)), 0
    for layer, moment in moments.items():
        h = decoder.run(h, start, layer)
        seen: list[mx.array] = []

        def keep(x, seen=seen):
            seen.append(x)
            return x

        with hooked(decoder.module(layer, "down"), before=keep):
            h, start = decoder.block(layer, h), layer + 1
        moment.add(seen[0].reshape(-1, moment.dim))
