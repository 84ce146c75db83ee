"""Rows of tokens from any corpus, always in the same order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..accel.linux_cpu import slow_exponentials
from ..errors import RomeError
from ..models.sampling import beginning, sample, start_token
from ..models.tokens import unwrapped

#: shorthand -> (hub data set, configuration)
HUB = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
#: rows that are sampled together, and that go to one rank
BLOCK = 32
_TOGETHER = 4  # blocks of own samples made side by side
_SUFFIXES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SHUFFLED = 10_000  # documents held to draw from


@dataclass(frozen=True)
class Corpus:
    """What to read, and how.

        Corpus("wikitext")
        Corpus(["a.txt", "articles/"], shuffle=True)
        Corpus("allenai/c4", config="en", split="validation")

    source: "self" for the model's own samples, files (a .txt is one document; .jsonl and .parquet
    have a document a record) and directories of them, or a hub data set, by name or shorthand.
    config, split: of a hub data set; column: the one with the text; shuffle: draw documents in a
    seeded order, files first, then out of 10,000 at a time.
    """

    source: str | Path | Sequence[str | Path]
    config: str | None = None
    split: str = "train"
    column: str = "text"
    shuffle: bool = False

    @classmethod
    def of(cls, corpus) -> "Corpus":
        """A Corpus, from one or from its source."""
        return corpus if isinstance(corpus, cls) else cls(corpus)

    @property
    def sources(self) -> list[str]:
        one = isinstance(self.source, str | Path)
        return [str(self.source)] if one else [str(part) for part in self.source]

    def __str__(self) -> str:
        """What identifies it: the source, and what is not as usual."""
        unusual = [f"{name} {value}" for name, value, usual in (
            ("config", self.config, None), ("split", self.split, "train"),
            ("column", self.column, "text")) if value != usual]
        unusual += ["shuffled"] * self.shuffle
        return ", ".join(self.sources) + (f" ({', '.join(unusual)})" if unusual else "")

    def files(self) -> list[Path] | None:
        """Local files in order; None for a hub data set. Raises RomeError for what is neither."""
        if len(self.sources) == 1 and _is_hub(self.sources[0]):
            return None
        return [file for source in self.sources for file in _files(source)]


def rows(model, tokenizer, corpus, length: int, *, seed: int = 0, skip: int = 0, rank: int = 0,
         size: int = 1, wanted: int | None = None,
         sampled: Callable[[int], None] = lambda tokens: None) -> Iterator[list[int] | None]:
    """Rows of `length` token ids, the first `skip` of them left out; every one is full.

    Documents follow one another, divided by EOS, without other special tokens: what texts begin
    with (`models.sampling.beginning`) is no part of a row. Of `size` ranks
    each gets blocks of 32 rows in turn, and None in place of the others'. wanted: rows that will be
    taken at most, with those left out; sampled: called with the number of tokens made so far, where
    they are the model's own samples.
    """
    corpus = Corpus.of(corpus)
    if corpus.sources == ["self"]:
        yield from _own_samples(model, tokenizer, length, seed, skip, rank, size, wanted, sampled)
        return
    for index, row in enumerate(_packed(unwrapped(tokenizer), tokenizer.eos_token_id,
                                        texts(corpus, seed), length)):
        if index >= skip:
            yield row if index // BLOCK % size == rank else None


def texts(corpus, seed: int = 0) -> Iterator[str]:
    """The documents of a corpus. Raises RomeError for one that cannot be read."""
    corpus = Corpus.of(corpus)
    files = corpus.files()
    if files is None:
        path, config = HUB.get(corpus.sources[0], (corpus.sources[0], None))
        yield from _column(corpus, seed, corpus.sources[0], path=path,
                           name=corpus.config or config, split=corpus.split)
        return
    if corpus.shuffle:
        files = [files[i] for i in np.random.RandomState(seed).permutation(len(files))]
    for file in files:
        if file.suffix == ".txt":
            try:
                yield file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise RomeError(f"{file} is not UTF-8 text ({error})") from error
        else:
            yield from _column(corpus, seed, str(file), path=_SUFFIXES[file.suffix],
                               data_files=str(file), split="train")


def check_corpus(corpus) -> None:
    """Raises RomeError for a local corpus that is not there or of an unknown kind."""
    corpus = Corpus.of(corpus)
    if corpus.sources != ["self"]:
        corpus.files()


def _packed(inner, eos: int | None, documents, length: int) -> Iterator[list[int]]:
    buffer: list[int] = []
    for text in documents:
        ids = inner.encode(text, add_special_tokens=False)
        if buffer and eos is not None:
            buffer.append(eos)
        start = 0
        while len(buffer) + len(ids) - start >= length:
            need = length - len(buffer)
            row, buffer, start = buffer + ids[start: start + need], [], start + need
            yield row
        buffer += ids[start:]


def _is_hub(name: str) -> bool:
    path = Path(name)
    return not path.exists() and (name in HUB or (
        name.count("/") == 1 and path.suffix not in _SUFFIXES
        and not name.startswith((".", "/", "~"))))


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        if not found:
            raise RomeError(f"no .txt, .jsonl or .parquet file in {name!r}")
        return found
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise RomeError(f"{name!r}: give a .txt, .jsonl or .parquet file")
        return [path]
    raise RomeError(f"there is no corpus {name!r}; give files, directories, 'self', a hub data "
                    f"set such as wikimedia/wikipedia, or one of {', '.join(HUB)}")


def _column(corpus: Corpus, seed: int, label: str, **load) -> Iterator[str]:
    from datasets import load_dataset

    try:
        records = load_dataset(**load, streaming=True)
        if corpus.shuffle:
            records = records.shuffle(seed=seed, buffer_size=_SHUFFLED)
        for record in records:
            if not isinstance(text := record.get(corpus.column), str):
                raise RomeError(f"{label!r} has no {corpus.column} column of texts; its columns "
                                f"are {', '.join(record)}; choose one")
            if text.strip():
                yield text
    except RomeError:
        raise
    except Exception as error:  # the hub's, the network's and the parsers' own
        reason = " ".join(str(error).split())[:200]
        raise RomeError(f"cannot read the corpus {label!r} ({type(error).__name__}: {reason}); "
                        "give a local .txt, .jsonl or .parquet file, or 'self'") from error


def _own_samples(model, tokenizer, length, seed, skip, rank, size, wanted,
                 sampled) -> Iterator[list[int] | None]:
    """Sampled in blocks of BLOCK rows by a seed each; one process samples several side by side,
    since every step reads all of the weights, and no more rows than wanted where that changes none.
    """
    start = beginning(tokenizer) or [start_token(tokenizer)]
    avoid = set(getattr(tokenizer, "all_special_ids", ()))
    block, skip = skip // BLOCK, skip % BLOCK
    made = -skip  # rows, beside those left out
    while True:
        count = _TOGETHER if size == 1 else 1
        if wanted is not None:
            count = max(1, min(count, -(-wanted // BLOCK) - block))
        number = BLOCK * count
        if wanted is not None and slow_exponentials():
            number = min(number, max(1, wanted - block * BLOCK))
        out = [None] * BLOCK if block % size != rank else sample(
            model, [start] * number, length, rows=BLOCK,
            seeds=[seed * 100_003 + block + i for i in range(count)], avoid=avoid,
            each=lambda n, made=made, number=number: sampled(max(0, made * length + number * n)))
        made += len(out)
        yield from out[skip:]
        block, skip = block + count, 0
