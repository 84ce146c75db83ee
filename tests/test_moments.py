"""Second moments: counted right, from any corpus, never lost, never another model's."""

import json
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from safetensors.numpy import save_file
from tiny import tiny_model

from rome_mlx.architectures import ARCHITECTURES
from rome_mlx.decoder import Decoder
from rome_mlx.errors import RomeError
from rome_mlx.hooks import intercept
from rome_mlx.moments import corpus, estimator, lookup, store
from rome_mlx.moments.estimator import SecondMoment, second_moments

TOKENIZER = FakeTokenizer()
EOS = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def text(tmp_path):
    """A .txt corpus of 600 letters, a token each."""
    path = tmp_path / "corpus.txt"
    letters = np.random.RandomState(0).choice(list("abcdefgh ,."), 600)
    path.write_text("".join(letters))
    return path


def relative(one, other) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def directly(model, layer: int, tokens: list[list[int]]) -> np.ndarray:
    """C from the whole model's run, in float64."""
    path = Decoder(model).path(layer, "down")
    with intercept(model, keep_inputs=[path]) as seen:
        model(mx.array(tokens))
    keys = np.array(seen[path + ":input"], np.float64)
    keys = keys.reshape(-1, keys.shape[-1])
    return keys.T @ keys / len(keys)


# the estimate

def test_a_second_moment_is_the_mean_outer_product():
    keys = np.random.RandomState(0).randn(5000, 40).astype(np.float32) * 3 + 2
    moment = SecondMoment(dim=40)
    for batch in np.array_split(keys, 300):
        moment.add(mx.array(batch))
    wide = keys.astype(np.float64)
    assert moment.count == 5000
    assert moment.value().dtype == np.float64
    assert (moment.value() == moment.value().T).all()
    assert relative(moment.value(), wide.T @ wide / 5000) < 1e-6
    assert relative(moment.mean(), wide.mean(0)) < 1e-6


def test_half_precision_keys_are_summed_in_float32():
    keys = mx.array(np.random.RandomState(0).randn(3000, 8)).astype(mx.bfloat16)
    moment = SecondMoment(dim=8)
    for begin in range(0, 3000, 100):
        moment.add(keys[begin: begin + 100])
    wide = np.array(keys.astype(mx.float32), np.float64)
    assert relative(moment.value(), wide.T @ wide / 3000) < 1e-6


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_moments_are_those_of_the_whole_models_keys(model_type, text):
    model = tiny_model(model_type)
    moments = second_moments(model, TOKENIZER, [0, 2, 3], text, 320, row_length=32, batch=3)
    ids = TOKENIZER.encode(text.read_text(), add_special_tokens=False)[:320]
    rows = np.reshape(ids, (10, 32)).tolist()
    assert sorted(moments) == [0, 2, 3]
    for layer, moment in moments.items():
        assert moment.count == 320
        assert relative(moment.value(), directly(model, layer, rows)) < 1e-5


def test_moments_of_a_4_bit_model_are_those_of_its_keys(text):
    model = tiny_model("llama", intermediate_size=64)
    nn.quantize(model, group_size=32, bits=4)
    moment = second_moments(model, TOKENIZER, [1], text, 64, row_length=32)[1]
    ids = TOKENIZER.encode(text.read_text(), add_special_tokens=False)[:64]
    assert moment.dim == 64
    assert relative(moment.value(), directly(model, 1, [ids[:32], ids[32:]])) < 1e-5


def test_counting_leaves_the_model_bit_identical(text):
    model = tiny_model("llama")
    before = {name: np.array(w) for name, w in tree_flatten(model.parameters())}
    classes = [type(m) for m in model.modules()]
    second_moments(model, TOKENIZER, [0, 3], text, 64, row_length=32)
    assert [type(m) for m in model.modules()] == classes
    for name, w in tree_flatten(model.parameters()):
        assert np.array_equal(np.array(w), before[name])


def test_the_authors_moments_of_the_default_model_are_reproduced(default_model, shared, tmp_path):
    path = tmp_path / "wikipedia.txt"
    path.write_text((shared / "data/wikipedia_articles.txt").read_text("utf-8")[:400_000], "utf-8")
    moments = second_moments(*default_model, [8, 12], path, 256 * 120)
    for layer in (8, 12):
        reference = np.load(shared / f"reference/second_moment_layer{layer}.npz")
        assert moments[layer].count == int(reference["count"])
        assert relative(moments[layer].value(), reference["moment"]) < 1e-4


@pytest.mark.parametrize("arguments, said", [
    (dict(layers=[99]), "layer 99 does not exist: this model has layers 0 to 3"),
    (dict(layers=[-1]), "layer -1 does not exist"),
    (dict(layers=[]), "at least one layer"),
    (dict(tokens=0), "above 0"), (dict(row_length=0), "above 0"), (dict(batch=0), "above 0"),
    (dict(tokens=10, row_length=5000), "fewer than 5000 tokens"),
])
def test_values_out_of_range_are_refused_and_nothing_is_written(model, text, arguments, said):
    output = text.parent / "moments"
    arguments = {"layers": [1], "tokens": 64, "corpus": text, "output": output, **arguments}
    with pytest.raises(RomeError, match=said):
        second_moments(model, TOKENIZER, **arguments)
    assert not output.exists()


# corpora

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


# the store

def test_a_stored_moment_is_read_back(model, text, tmp_path):
    moments = second_moments(model, TOKENIZER, [1, 2], text, 64, row_length=32, output=tmp_path)
    for layer, moment in moments.items():
        read, about = store.read(store.layer_path(tmp_path, layer))
        assert read.count == moment.count == 64
        assert relative(read.value(), moment.value()) < 1e-7
        assert relative(read.mean(), moment.mean()) < 1e-7
        assert about["module"] == f"model.layers.{layer}.mlp.down_proj" and about["layer"] == layer
        assert about["corpus"] == str(text) and set(about["versions"]) == {"mlx", "mlx-lm"}
        found = lookup.moment_matrix(model, TOKENIZER, layer, tmp_path)
        assert np.array_equal(found, read.value())


class Interrupted(BaseException):
    """As Ctrl-C is: no Exception."""


def interrupt(monkeypatch, module, name: str, calls: int, error=Interrupted):
    """Let `module.name` work `calls` times, then fail."""
    function, left = getattr(module, name), [calls]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise error("stopped here")
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("source", ["text", "self"])
def test_an_interrupted_run_goes_on_and_equals_an_unbroken_one(
        source, model, text, tmp_path, monkeypatch):
    arguments = dict(layers=[0, 3], corpus=text if source == "text" else "self", tokens=480,
                     row_length=12, batch=5)
    unbroken = second_moments(model, TOKENIZER, **arguments)
    output = tmp_path / "moments"
    monkeypatch.setattr(estimator, "_CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, estimator, "_add_rows", 4)
        second_moments(model, TOKENIZER, **arguments, output=output)
    assert store.read(store.layer_path(output, 3))[0].count == 4 * 5 * 12

    with monkeypatch.context() as patch:
        interrupt(patch, estimator, "_add_rows", 4)  # the other half, no row twice
        resumed = second_moments(model, TOKENIZER, **arguments, output=output)
    for layer in (0, 3):
        stored = store.read(store.layer_path(output, layer))[0]
        for moment in (resumed[layer], stored):
            assert moment.count == 480
            assert relative(moment.value(), unbroken[layer].value()) < 1e-6
            assert relative(moment.mean(), unbroken[layer].mean()) < 1e-6


def test_a_run_stopped_between_two_layers_files_goes_on(model, text, tmp_path, monkeypatch):
    arguments = dict(layers=[0, 3], corpus=text, tokens=480, row_length=12, batch=5)
    unbroken = second_moments(model, TOKENIZER, **arguments)
    output = tmp_path / "moments"
    monkeypatch.setattr(estimator, "_CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, store, "write", 5)
        second_moments(model, TOKENIZER, **arguments, output=output)
    counts = [store.read(store.layer_path(output, layer))[0].count for layer in (0, 3)]
    assert counts == [3 * 60, 2 * 60]
    resumed = second_moments(model, TOKENIZER, **arguments, output=output)
    for layer in (0, 3):
        assert resumed[layer].count == 480
        assert relative(resumed[layer].value(), unbroken[layer].value()) < 1e-6


def test_stored_moments_are_extended(model, text, tmp_path):
    arguments = dict(corpus=text, row_length=16)
    whole = second_moments(model, TOKENIZER, [1], tokens=512, **arguments)[1]
    second_moments(model, TOKENIZER, [1], tokens=100, **arguments, output=tmp_path)
    extended = second_moments(model, TOKENIZER, [1], tokens=512, **arguments, output=tmp_path)[1]
    assert extended.count == 512 and relative(extended.value(), whole.value()) < 1e-6
    again = second_moments(model, TOKENIZER, [1], tokens=100, **arguments, output=tmp_path)[1]
    assert again.count == 512 and relative(again.value(), whole.value()) < 1e-6


@pytest.mark.parametrize("place", ["replace", "fdopen"])
@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(
        place, error, model, text, tmp_path, monkeypatch):
    arguments = dict(corpus=text, row_length=16)
    output = tmp_path / "moments"
    second_moments(model, TOKENIZER, [1], tokens=64, **arguments, output=output)
    before = store.layer_path(output, 1).read_bytes()
    interrupt(monkeypatch, store.os, place, 0, error)
    with pytest.raises(RomeError if error is OSError else error, match=r"cannot write|stopped"):
        second_moments(model, TOKENIZER, [1], tokens=128, **arguments, output=output)
    monkeypatch.undo()
    assert [p.name for p in output.iterdir()] == ["layer-1.safetensors"]
    assert store.layer_path(output, 1).read_bytes() == before


def test_an_output_that_is_no_directory_is_refused_before_the_work(model, text, monkeypatch):
    monkeypatch.setattr(estimator, "_count", None)
    with pytest.raises(RomeError, match=r"corpus\.txt.* is not a directory"):
        second_moments(model, TOKENIZER, [1], text, 64, row_length=16, output=text)


@pytest.fixture
def stored(model, text, tmp_path):
    """A directory with layer 1's moments."""
    output = tmp_path / "moments"
    second_moments(model, TOKENIZER, [1], text, 64, row_length=16, output=output)
    return output


def test_moments_of_another_model_are_refused(stored, text):
    other = tiny_model("llama", seed=1)
    with pytest.raises(RomeError, match="made for another model"):
        second_moments(other, TOKENIZER, [1], text, 128, row_length=16, output=stored)
    with pytest.raises(RomeError, match="made for another model"):
        lookup.moment_matrix(other, TOKENIZER, 1, stored)


def test_moments_of_another_shape_are_refused(stored):
    with pytest.raises(RomeError, match="dim 48, not 64"):
        lookup.moment_matrix(tiny_model("llama", intermediate_size=64), TOKENIZER, 1, stored)


def test_moments_of_another_layer_are_refused(model, stored):
    store.layer_path(stored, 1).rename(store.layer_path(stored, 2))
    with pytest.raises(RomeError, match="layer 1, not 2"):
        lookup.moment_matrix(model, TOKENIZER, 2, stored)
    with pytest.raises(RomeError, match=r"has no layer-1.safetensors.*rome-mlx moments"):
        lookup.moment_matrix(model, TOKENIZER, 1, stored)


@pytest.mark.parametrize("change, said", [
    (dict(corpus="self"), "corpus '.*corpus.txt', not 'self'"),
    (dict(row_length=32), "row_length 16, not 32"), (dict(seed=1), "seed 0, not 1"),
])
def test_another_corpus_is_not_mixed_in(model, stored, text, change, said):
    before = store.layer_path(stored, 1).read_bytes()
    with pytest.raises(RomeError, match=said):
        second_moments(model, TOKENIZER, [1], output=stored, tokens=128,
                       **{"corpus": text, "row_length": 16, **change})
    assert store.layer_path(stored, 1).read_bytes() == before


def test_a_damaged_file_is_refused_by_name(model, stored):
    path = store.layer_path(stored, 1)
    whole = path.read_bytes()
    about = {k: json.dumps(v) for k, v in store.read_about(path).items()}
    upper = np.zeros(48 * 49 // 2, np.float32)
    for damage in (
        lambda: path.write_bytes(whole[:-100]), lambda: path.write_bytes(whole[:50]),
        lambda: path.write_bytes(b""), lambda: path.write_bytes(b"garbage" * 100),
        lambda: save_file({"upper": upper}, path),
        lambda: save_file({"upper": upper}, path, about),
        lambda: save_file({"upper": upper[1:], "mean": np.zeros(48, np.float32)}, path, about),
        lambda: save_file({"upper": upper, "mean": np.zeros(3, np.float32)}, path, about),
        lambda: save_file({"upper": upper + np.nan, "mean": np.zeros(48, np.float32)}, path, about),
    ):
        damage()
        with pytest.raises(RomeError, match=r"layer-1\.safetensors is (not a moments|damaged)"):
            lookup.moment_matrix(model, TOKENIZER, 1, stored)


# what an editor finds

def test_given_moments_are_taken_as_they_are(model, text):
    moments = second_moments(model, TOKENIZER, [1], text, 64, row_length=16)
    expected = moments[1].value()
    assert np.array_equal(lookup.moment_matrix(model, TOKENIZER, 1, moments), expected)
    assert np.array_equal(lookup.moment_matrix(model, TOKENIZER, 1, {1: expected}), expected)


def test_given_moments_of_something_else_are_refused(model, text):
    moments = second_moments(model, TOKENIZER, [1], text, 64, row_length=16)
    with pytest.raises(RomeError, match=r"of layers \[1\], not 2; .*rome-mlx moments --layers 2"):
        lookup.moment_matrix(model, TOKENIZER, 2, moments)
    with pytest.raises(RomeError, match="made for another model"):
        lookup.moment_matrix(tiny_model("llama", seed=1), TOKENIZER, 1, moments)
    with pytest.raises(RomeError, match=r"shape \(5, 5\).* 48 wide"):
        lookup.moment_matrix(model, TOKENIZER, 1, {1: np.eye(5)})
    with pytest.raises(RomeError, match="layer 99 does not exist"):
        lookup.moment_matrix(model, TOKENIZER, 99, moments)


def test_without_moments_the_command_that_makes_them_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path))
    with pytest.raises(RomeError, match="rome-mlx moments --layers 2 --corpus self"):
        lookup.moment_matrix(model, TOKENIZER, 2)


def test_missing_moments_are_made_once_from_own_samples_and_kept(
        model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path))
    monkeypatch.setattr(lookup, "_SELF_TOKENS", 300)
    monkeypatch.setattr(corpus, "_SAMPLE_ROWS", 2)
    assert lookup.ensure_moments(model, TOKENIZER, [2]) is None
    assert "no second moments for layers [2]" in capsys.readouterr().err
    made = second_moments(model, TOKENIZER, [2], "self", 300)[2].value()
    assert relative(lookup.moment_matrix(model, TOKENIZER, 2), made) < 1e-6

    monkeypatch.setattr(lookup, "second_moments", None)
    lookup.ensure_moments(model, TOKENIZER, [2])
    assert capsys.readouterr().err == ""
