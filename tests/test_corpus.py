"""Rows of tokens from any corpus, in the same order every time."""

import json
import os
import socket
import subprocess
import sys
from itertools import islice

import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.moments import corpus, estimator
from rome_mlx.moments.corpus import Corpus
from rome_mlx.moments.estimator import second_moments

TOKENIZER = FakeTokenizer()
EOS = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


DOCUMENTS = ["first document", "the second, longer one; it is longer", "third", "and a fourth"]


def packed(documents, length: int) -> list[list[int]]:
    """Rows of all documents in one piece, EOS between two that share a row."""
    ids = []
    for document in documents:
        divider = [EOS] if len(ids) % length else []
        ids += divider + TOKENIZER.encode(document, add_special_tokens=False)
    return [ids[i: i + length] for i in range(0, len(ids) - length + 1, length)]


def write_documents(path, documents):
    if path.suffix == ".txt":
        path.write_text("".join(documents), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": d, "id": 1}) + "\n" for d in documents))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": documents}), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_documents_are_packed_into_rows_divided_by_eos(suffix, tmp_path):
    path = write_documents(tmp_path / f"c{suffix}", [*DOCUMENTS[:2], " \n", *DOCUMENTS[2:]])
    assert list(corpus.rows(None, TOKENIZER, path, 7)) == packed(DOCUMENTS, 7)


def test_a_text_file_is_one_document(tmp_path):
    path = write_documents(tmp_path / "c.txt", DOCUMENTS)
    assert list(corpus.rows(None, TOKENIZER, path, 7)) == packed(["".join(DOCUMENTS)], 7)


def test_a_directorys_files_follow_one_another_by_name(tmp_path):
    (tmp_path / "b").mkdir()
    for name, documents in (("c.txt", DOCUMENTS[3:]), ("a.jsonl", DOCUMENTS[:2]),
                            ("b/b.parquet", DOCUMENTS[2:3])):
        write_documents(tmp_path / name, documents)
    (tmp_path / "README.md").write_text("not a part of it")
    assert list(corpus.rows(None, TOKENIZER, tmp_path, 7)) == packed(DOCUMENTS, 7)


@pytest.mark.parametrize("skip", [1, 3, 8, 100])
def test_rows_go_on_where_they_stopped(skip, tmp_path):
    path = write_documents(tmp_path / "c.jsonl", DOCUMENTS)
    assert list(corpus.rows(None, TOKENIZER, path, 7, skip=skip)) == packed(DOCUMENTS, 7)[skip:]


@pytest.mark.parametrize("name, content, said", [
    ("a.jsonl", '{"body": "x"}\n', "no text column of texts; its columns are body"),
    ("a.jsonl", '{"text": "x"', "cannot read the corpus"),
    ("a.parquet", "PAR1 not really", "cannot read the corpus"),
    ("a.txt", b"\xff\xfe\xfa", "is not UTF-8 text"),
    ("a.pdf", "x", "give a .txt, .jsonl or .parquet file"),
])
def test_a_file_that_cannot_be_read_is_refused_by_name(model, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RomeError, match=said) as error:
        second_moments(model, TOKENIZER, [0], path, 8, row_length=4, output=tmp_path / "out")
    assert name in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere.txt", "./nowhere", "/no/where", "wikitexts", "a/b.txt"])
def test_a_missing_corpus_is_refused_before_the_work(name, monkeypatch):
    monkeypatch.setattr(estimator, "rows", None)
    with pytest.raises(RomeError, match="there is no corpus"):
        second_moments(tiny_model("llama"), TOKENIZER, [0], name, 8)


def test_a_directory_without_texts_is_refused(tmp_path):
    with pytest.raises(RomeError, match=r"no \.txt, \.jsonl or \.parquet file"):
        corpus.check_corpus(tmp_path)


def test_a_hub_corpus_is_streamed_by_name(monkeypatch):
    asked = []

    def load_dataset(**arguments):
        asked.append(arguments)
        return iter([{"body": "", "text": d} for d in DOCUMENTS])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in ("wikitext", "wikipedia", "someone/texts",
                 Corpus("someone/texts", config="en", split="test")):
        assert list(corpus.rows(None, TOKENIZER, name, 7)) == packed(DOCUMENTS, 7)
    streamed = dict(split="train", streaming=True)
    assert asked == [
        dict(path="Salesforce/wikitext", name="wikitext-103-raw-v1", **streamed),
        dict(path="wikimedia/wikipedia", name="20231101.en", **streamed),
        dict(path="someone/texts", name=None, **streamed),
        dict(path="someone/texts", name="en", split="test", streaming=True)]


def test_a_hub_that_is_away_is_a_sentence_with_the_remedy(monkeypatch):
    def load_dataset(**arguments):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(RomeError, match=r"'wikitext' \(ConnectionError: no route\).*or 'self'"):
        list(corpus.texts("wikitext"))


def test_without_a_hub_the_error_comes_soon_and_says_what_to_do_instead():
    """In a process of its own, whose hub is a port where nothing listens."""
    script = ("import rome_mlx\nfrom rome_mlx.moments.corpus import texts\n"
              "next(texts('wikitext'))")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}",
                       "HF_HUB_DISABLE_TELEMETRY": "1"}
        out = subprocess.run([sys.executable, "-c", script], env=environment, timeout=100,
                             capture_output=True, text=True, check=False)
    assert out.returncode == 1
    said = out.stderr.strip().splitlines()[-1]
    assert said.startswith("rome_mlx.errors.RomeError: cannot read the corpus 'wikitext'")
    assert "give a local .txt, .jsonl or .parquet file, or 'self'" in said


def test_a_directory_of_parquet_shards_is_streamed_like_one_file(tmp_path):
    many = [f"document {i}, " + "word " * (i % 7) for i in range(300)]
    for i in range(3):
        write_documents(tmp_path / f"part-{i}.parquet", many[i * 100: (i + 1) * 100])
    assert list(corpus.rows(None, TOKENIZER, tmp_path, 16)) == packed(many, 16)


def test_another_column_is_read_when_asked_for(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": "no", "body": d}) + "\n" for d in DOCUMENTS))
    chosen = Corpus(path, column="body")
    assert list(corpus.rows(None, TOKENIZER, chosen, 7)) == packed(DOCUMENTS, 7)
    with pytest.raises(RomeError, match="no title column of texts; its columns are text, body"):
        list(corpus.texts(Corpus(path, column="title")))


def test_several_files_follow_one_another_as_given(tmp_path):
    one = write_documents(tmp_path / "b.txt", DOCUMENTS[:1])
    two = write_documents(tmp_path / "a.jsonl", DOCUMENTS[1:])
    assert list(corpus.texts(Corpus([one, two]))) == DOCUMENTS
    with pytest.raises(RomeError, match="there is no corpus 'wikitext'"):
        list(corpus.texts(Corpus([one, "wikitext"])))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
def test_a_shuffle_is_the_same_for_a_seed_and_loses_no_document(suffix, tmp_path):
    many = [f"document {i}" for i in range(50)]
    if suffix == ".txt":
        for i, document in enumerate(many):
            write_documents(tmp_path / f"{i:02}.txt", [document])
    else:
        write_documents(tmp_path / f"c{suffix}", many)
    shuffled = Corpus(tmp_path, shuffle=True)
    one = list(corpus.texts(shuffled, seed=3))
    assert one == list(corpus.texts(shuffled, seed=3)) != list(corpus.texts(shuffled, seed=4))
    assert sorted(one) == sorted(many) == sorted(corpus.texts(tmp_path)) and one != many
    rows = list(corpus.rows(None, TOKENIZER, shuffled, 7, seed=3))
    assert rows == packed(one, 7)
    assert list(corpus.rows(None, TOKENIZER, shuffled, 7, seed=3, skip=9)) == rows[9:]


def test_a_corpus_says_what_identifies_it():
    assert str(Corpus("wikitext")) == "wikitext"
    assert str(Corpus(["a.txt", "b"], config="en", split="test", column="body",
                      shuffle=True)) == "a.txt, b (config en, split test, column body, shuffled)"


@pytest.mark.parametrize("source", ["text", "self"])
def test_ranks_take_blocks_of_rows_in_turn(source, model, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 4)
    path = "self" if source == "self" else write_documents(tmp_path / "c.txt", ["abcde " * 60])

    def of(**options):
        return list(islice(corpus.rows(model, TOKENIZER, path, 7, **options), 30))

    whole = of()
    parts = [of(rank=rank, size=3) for rank in range(3)]
    for i, row in enumerate(whole):
        assert [part[i] for part in parts] == [row if i // 4 % 3 == r else None for r in range(3)]
    assert of(skip=5, rank=2, size=3)[:20] == parts[2][5:25]


def test_own_samples_are_the_same_for_a_seed_and_hold_no_special_tokens(model):
    def samples(seed):
        return list(islice(corpus.rows(model, TOKENIZER, "self", 6, seed=seed), 40))

    one = samples(3)
    assert one == samples(3) and one != samples(4)
    assert len(one) == 40 and all(len(row) == 6 for row in one)
    assert len({tuple(row) for row in one}) > 35
    assert not set(TOKENIZER.all_special_ids) & {token for row in one for token in row}


@pytest.mark.parametrize("skip", [1, 31, 32, 37])
def test_own_samples_go_on_exactly(model, skip):
    whole = list(islice(corpus.rows(model, TOKENIZER, "self", 6), 70))
    rest = list(islice(corpus.rows(model, TOKENIZER, "self", 6, skip=skip), 70 - skip))
    assert rest == whole[skip:]
