"""C = E[k kᵀ] over a corpus, for many layers in one pass, by one process or several."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import mlx.core as mx

from ..accel.linux_cpu import fast_attention
from ..errors import RomeError
from ..models.architectures import model_type
from ..models.decoder import Decoder
from ..models.identity import Identity, fingerprint
from ..models.loading import describe
from ..models.sampling import beginning
from ..models.weights import weight_shape
from ..storage.ranks import Ranks
from . import quality as enough
from . import store
from .corpus import BLOCK, Corpus, check_corpus, rows
from .keys import layer_keys
from .progress import Progress
from .second_moment import SecondMoment

_CHECKPOINT_SECONDS = 40


class Moments(dict):
    """{layer: SecondMoment}, with what they were counted on in `about[layer]`, a dict."""

    def __init__(self, moments=(), about=None):
        super().__init__(moments)
        self.about: dict[int, dict] = about or {}

    def quality(self, layer: int) -> enough.Quality:
        """What a layer's matrix is worth: is it settled, is it thin, how is it conditioned."""
        return enough.quality(self[layer], self.about[layer])


def second_moments(model, tokenizer, layers, corpus: str | Path | Corpus = "wikitext",
                   tokens: int = 100_000, *, row_length: int = 256, batch: int = 8,
                   seed: int = 0, until_stable: float | None = None,
                   output: str | Path | None = None, progress: bool = False,
                   report: Callable[[float, float | None], None] | None = None) -> Moments:
    """Second moments of the down projections' inputs at `layers`, over a corpus.

    Each row is run after the special tokens that the model's texts begin with, such as BOS, whose
    own keys are not counted: they are the same in every text, and no subject's.
    tokens: counted up to whole rows of `row_length`; every row is full, so padding is never
    counted. batch: rows run at a time. until_stable: stop at 1/16, 1/8, 1/4 or 1/2 of the
    tokens when there the directions C⁻¹k of their two halves have at least this mean cosine.
    output: a directory with one file a layer. A file for the same model, corpus, row length and
    seed is taken up where it stopped, also to extend it; it is saved every 40 seconds.

    progress: say on stderr how far it is, with a bar on a terminal, else every ten seconds;
    report: called with the share that is done and the seconds left, None at first.

    Under `mlx.launch` each rank counts a share of the rows, and all return the same sums; the
    first one writes. The model is counted as it is, with its adapters and applied edits, and what
    is counted says so. Takes 10 dim² bytes per layer, on several ranks 18, and 10 dim² beside.
    Raises RomeError for layers out of range, a corpus that cannot be read or is too short, and
    files in `output` that are of something else; ConnectionError when another rank dies. The
    model stays as it was.
    """
    decoder, corpus = Decoder(model), Corpus.of(corpus)
    layers = sorted({decoder.check_layer(layer) for layer in layers})
    if not layers or tokens < 1 or row_length < 1 or batch < 1:
        raise RomeError("give at least one layer, and counts of tokens and rows above 0")
    check_corpus(corpus)
    if output is not None:
        store.check_directory(output)
    abouts = about_layers(decoder, tokenizer, layers, Identity.of(model))
    moments = Moments(about={
        layer: {**about, "corpus": str(corpus), "row_length": row_length, "seed": seed}
        for layer, about in abouts.items()})
    ranks = Ranks("nothing is kept without an output directory" if output is None else
                  f"what was counted until the last save is in {output}: start it again")
    with ranks.together(), ExitStack() as stack:
        blocks = range(layers[-1] + 1)
        stack.enter_context(decoder.fast())
        stack.enter_context(fast_attention([decoder.module(i, "attn") for i in blocks]))
        for layer in layers:
            moments[layer] = _begun(moments.about[layer], output if ranks.rank == 0 else None)
            if ranks.size > 1:
                ranks.spread(moments[layer])
        _Count(decoder, tokenizer, moments, ranks, corpus, batch, output, until_stable,
               progress, report).run(-(-tokens // row_length))
    return moments


def about_layers(decoder: Decoder, tokenizer, layers, identity: Identity) -> dict[int, dict]:
    """What identifies the keys of each layer: model, its identity, layer, module path, width,
    fingerprint, and which tokens texts begin with.

    identity: the model's, with its edits or without, as the keys are.
    """
    modules = {layer: decoder.module(layer, "down") for layer in layers}
    model = {"model": model_name(decoder.model, tokenizer), "identity": identity.to_json(),
             "begins_with": beginning(tokenizer)}
    return {layer: {**model, "layer": layer, "module": decoder.path(layer, "down"),
                    "dim": weight_shape(module)[1], "fingerprint": fingerprint(module)}
            for layer, module in modules.items()}


def model_name(model, tokenizer) -> str:
    """A hub id, or the last part of a local directory's path: what to call the model elsewhere."""
    path = describe(model, tokenizer)["path"] or model_type(model)
    return Path(path).name if Path(path).is_dir() else path


def _begun(about: dict, output) -> SecondMoment:
    """The moment that `output` has of the layer, whose `about` learns how it settled, or none."""
    path = store.layer_path(output, about["layer"]) if output is not None else None
    if path is None or not path.exists():
        return SecondMoment(about["dim"])
    moment, found = store.read(path)
    store.check(path, found, about, ("corpus", "row_length", "seed"))
    about["settling"] = found.get("settling", [])
    moment.first = moment.first or moment.triangle()
    return moment


class _Count:
    """One run over the rows; layers that stopped earlier catch up with the others."""

    def __init__(self, decoder, tokenizer, moments: Moments, ranks: Ranks, corpus: Corpus,
                 batch: int, output, until_stable, progress: bool, report):
        about = next(iter(moments.about.values()))
        self.decoder, self.tokenizer, self.moments, self.ranks = decoder, tokenizer, moments, ranks
        self.batch, self.output, self.until_stable = batch, output, until_stable
        self.length, self.corpus = about["row_length"], corpus
        self.begins_with = about["begins_with"]
        self.begun = {layer: m.count // self.length for layer, m in moments.items()}
        self.done = min(self.begun.values())
        self.shares = moments if ranks.size == 1 else {
            layer: SecondMoment(m.dim) for layer, m in moments.items()}
        self.keys: dict = {}  # of well-known subjects, a layer
        self.progress, self.saved = progress and ranks.rank == 0, time.monotonic()
        self.report = report
        self.seed = about["seed"]

    def run(self, wanted: int) -> None:
        """Count until there are `wanted` rows, the corpus ends or the directions have settled."""
        stop, start = self.done >= wanted, self.done
        marks = self._marks(wanted)
        with Progress(wanted * self.length, self.done * self.length, self.progress,
                      self.report) as progress:
            source = rows(self.decoder.model, self.tokenizer, self.corpus, self.length,
                          seed=self.seed, skip=self.done, rank=self.ranks.rank,
                          size=self.ranks.size, wanted=wanted, sampled=progress.sampling)
            while not stop:
                got = self._step(source, min([wanted, *(n for n in marks if n > self.done)]))
                progress.add(got * self.length)
                stop = got == 0 or self.done == wanted
                if self.done in marks or not got:
                    stop = self._look() or stop
                if stop or self.ranks.any(time.monotonic() - self.saved > _CHECKPOINT_SECONDS):
                    self._meet()
                    self._save(finished=stop)
        if self.done == 0:
            raise RomeError(f"the corpus {str(self.corpus)!r} has fewer than {self.length} "
                            "tokens; give a longer text or shorter rows")
        if start < wanted and not got and self.ranks.rank == 0:
            print(f"rome-mlx: the corpus ended after {self.done * self.length:,} tokens",
                  file=sys.stderr)

    def _marks(self, wanted: int) -> set[int]:
        """Rows at which to look whether the directions have settled."""
        widest = max(m.dim for m in self.moments.values())
        return {n for n in (-(-wanted // 2**k) for k in range(5))
                if n * self.length >= 2 * widest}

    def _step(self, source, limit: int) -> int:
        """Count up to `limit` rows or less; how many there were, over all ranks."""
        ahead = [n for n in self.begun.values() if n > self.done]
        most = self.batch if self.ranks.size == 1 else BLOCK * self.ranks.size
        group = list(islice(source, min([most, *(n - self.done for n in (limit, *ahead))])))
        mine = [row for row in group if row is not None]
        layers = [layer for layer, n in self.begun.items() if n <= self.done]
        for i in range(0, len(mine), self.batch):
            _add_rows(self.decoder, mine[i: i + self.batch], self.begins_with,
                      {layer: self.shares[layer] for layer in layers})
        self.done += len(group)
        return len(group)

    def _meet(self) -> None:
        if self.ranks.size > 1:
            for layer, moment in self.moments.items():
                self.ranks.gather(moment, self.shares[layer])

    def _look(self) -> bool:
        """See how the directions settle; whether all have settled as far as was asked."""
        self._meet()
        settled = []
        for layer, moment in self.moments.items():
            if self.ranks.rank or not 0 < moment.count == self.done * self.length:
                continue
            cosine, first = None, moment.first
            if first is not None and moment.count <= 4 * min(first.count,
                                                             moment.count - first.count):
                if layer not in self.keys:
                    self.keys[layer] = enough.subject_keys(self.decoder, self.tokenizer, layer)
                cosine = enough.agreement(moment, self.keys[layer])
            if cosine is not None:
                self.moments.about[layer].setdefault("settling", []).append(
                    {"tokens": moment.count, "cosine": cosine})
            moment.first = moment.triangle()
            settled.append(cosine is not None and cosine >= (self.until_stable or 2))
        return self.ranks.any(len(settled) == len(self.moments) and all(settled))

    def _save(self, finished: bool) -> None:
        for layer, moment in self.moments.items():
            self.moments.about[layer]["finished"] = finished
            if finished:
                moment.first = None
        if self.output is not None and self.done and self.ranks.rank == 0:
            store.write_all(self.output, self.moments)
        self.saved = time.monotonic()


def _add_rows(decoder: Decoder, rows: list[list[int]], begins_with: list[int],
              moments: dict[int, SecondMoment]) -> None:
    """Count the keys of the rows' own tokens."""
    ids = mx.array([begins_with + row for row in rows])
    for layer, keys in layer_keys(decoder, ids, moments):
        moments[layer].add(keys[:, len(begins_with):].reshape(-1, moments[layer].dim))
