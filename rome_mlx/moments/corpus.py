"""Rows of tokens from any corpus, always in the same order."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import RomeError
from ..sampling import sample, start_token
from ..tokens import unwrapped

#: shorthand -> (hub data set, configuration)
HUB = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
_SUFFIXES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SAMPLE_ROWS = 32


def rows(model, tokenizer, corpus: str | Path, length: int, *, seed: int = 0,
         skip: int = 0) -> Iterator[list[int]]:
    """Rows of `length` token ids, the first `skip` of them left out.

    corpus: "self" for the model's own samples, a file (.txt is one document, .jsonl and .parquet
    have a `text` column) or a directory of files, or a hub data set by name or shorthand.
    Documents follow one another, divided by EOS, without other special tokens.
    """
    if str(corpus) == "self":
        yield from _own_samples(model, tokenizer, length, seed, skip)
        return
    inner = unwrapped(tokenizer)
    buffer: list[int] = []
    for text in texts(corpus):
        ids = inner.encode(text, add_special_tokens=False)
        if buffer and tokenizer.eos_token_id is not None:
            buffer.append(tokenizer.eos_token_id)
        start = 0
        while len(buffer) + len(ids) - start >= length:
            need = length - len(buffer)
            row, buffer, start = buffer + ids[start: start + need], [], start + need
            if skip:
                skip -= 1
            else:
                yield row
        buffer += ids[start:]


def texts(corpus: str | Path) -> Iterator[str]:
    """The documents of a corpus. Raises RomeError for one that cannot be read."""
    files = _files(corpus)
    if files is None:
        yield from _hub_texts(str(corpus))
        return
    for file in files:
        if file.suffix == ".txt":
            try:
                yield file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise RomeError(f"{file} is not UTF-8 text ({error})") from error
        else:
            yield from _column(str(file), data_files=str(file), path=_SUFFIXES[file.suffix])


def check_corpus(corpus: str | Path) -> None:
    """Raises RomeError for a local corpus that is not there or of an unknown kind."""
    if str(corpus) != "self":
        _files(corpus)


def _files(corpus) -> list[Path] | None:
    """Local files in order; None where the corpus is a hub data set."""
    path, name = Path(corpus), str(corpus)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        if not found:
            raise RomeError(f"no .txt, .jsonl or .parquet file in {name!r}")
        return found
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise RomeError(f"{name!r}: give a .txt, .jsonl or .parquet file")
        return [path]
    if name in HUB or (name.count("/") == 1 and path.suffix not in _SUFFIXES
                       and not name.startswith((".", "/", "~"))):
        return None
    raise RomeError(f"there is no corpus {name!r}; give a file, a directory, 'self', a hub data "
                    f"set such as wikimedia/wikipedia, or one of {', '.join(HUB)}")


def _hub_texts(name: str) -> Iterator[str]:
    path, configuration = HUB.get(name, (name, None))
    yield from _column(name, path=path, name=configuration)


def _column(label: str, **load) -> Iterator[str]:
    from datasets import load_dataset

    try:
        for record in load_dataset(**load, split="train", streaming=True):
            if not isinstance(record.get("text"), str):
                raise RomeError(f"{label!r} has no text column; its columns are "
                                + ", ".join(record))
            if record["text"].strip():
                yield record["text"]
    except RomeError:
        raise
    except Exception as error:  # the hub's, the network's and the parsers' own
        reason = " ".join(str(error).split())[:200]
        raise RomeError(f"cannot read the corpus {label!r} ({type(error).__name__}: {reason}); "
                        "give a local .txt, .jsonl or .parquet file, or 'self'") from error


def _own_samples(model, tokenizer, length, seed, skip) -> Iterator[list[int]]:
    start = start_token(tokenizer)
    avoid = set(getattr(tokenizer, "all_special_ids", ()))
    batch = skip // _SAMPLE_ROWS
    skip -= batch * _SAMPLE_ROWS
    while True:
        out = sample(model, [[start]] * _SAMPLE_ROWS, length, seed=seed * 100_003 + batch,
                     avoid=avoid)
        yield from out[skip:]
        batch, skip = batch + 1, 0
