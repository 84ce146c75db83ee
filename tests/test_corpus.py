"""Rows of tokens from any corpus, in the same order every time."""

import json
from itertools import islice

import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.moments import corpus, estimator
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
    ("a.jsonl", '{"body": "x"}\n', "no text column; its columns are body"),
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
    monkeypatch.setattr(estimator, "_count", None)
    with pytest.raises(RomeError, match="there is no corpus"):
        second_moments(tiny_model("llama"), TOKENIZER, [0], name, 8)


def test_a_directory_without_texts_is_refused(tmp_path):
    with pytest.raises(RomeError, match=r"no \.txt, \.jsonl or \.parquet file"):
        corpus.check_corpus(tmp_path)


def test_a_hub_corpus_is_streamed_by_name(monkeypatch):
    asked = []

    def load_dataset(**arguments):
        asked.append(arguments)
        return iter([{"text": d} for d in DOCUMENTS])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in ("wikitext", "someone/texts"):
        assert list(corpus.rows(None, TOKENIZER, name, 7)) == packed(DOCUMENTS, 7)
    assert asked == [
        dict(path="Salesforce/wikitext", name="wikitext-103-raw-v1", split="train",
             streaming=True),
        dict(path="someone/texts", name=None, split="train", streaming=True)]


def test_a_hub_that_is_away_is_a_sentence_with_the_remedy(monkeypatch):
    def load_dataset(**arguments):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(RomeError, match=r"'wikitext' \(ConnectionError: no route\).*or 'self'"):
        list(corpus.texts("wikitext"))


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
