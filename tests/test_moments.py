"""Second moments are those of the keys, and an editor finds its own."""

import json
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import recorded
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from safetensors import safe_open
from safetensors.numpy import save_file
from samples import letters, relative
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.models.architectures import ARCHITECTURES
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.hooks import intercept
from rome_mlx.moments import corpus, lookup, store
from rome_mlx.moments.estimator import SecondMoment, second_moments

TOKENIZER = FakeTokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def text(tmp_path):
    return letters(tmp_path, 600)


def directly(model, layer: int, tokens: list[list[int]]) -> np.ndarray:
    """C from the whole model's run, in float64."""
    keys = directly_keys(model, layer, tokens)
    keys = keys.reshape(-1, keys.shape[-1])
    return keys.T @ keys / len(keys)


def directly_keys(model, layer: int, tokens: list[list[int]]) -> np.ndarray:
    """(rows, tokens, dim) float64, from the whole model's run."""
    path = Decoder(model).path(layer, "down")
    with intercept(model, keep_inputs=[path]) as seen:
        model(mx.array(tokens))
    return np.array(seen[path + ":input"], np.float64)


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
    dense = Decoder(model).dense_layers
    layers = sorted({0, *dense[-2:]})
    moments = second_moments(model, TOKENIZER, layers, text, 320, row_length=32, batch=3)
    ids = TOKENIZER.encode(text.read_text(), add_special_tokens=False)[:320]
    rows = np.reshape(ids, (10, 32)).tolist()
    assert sorted(moments) == layers
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
        theirs = recorded.second_moment(layer)
        assert moments[layer].count == 30_720
        assert relative(moments[layer].value(), theirs) <= recorded.TOLERANCE["second moments"]


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


# texts that begin with BOS

BEGINNING = FakeTokenizer(begins=True)
BOS = BEGINNING.bos_token_id



def test_rows_begin_as_texts_do_and_that_position_is_not_counted(model, text):
    moment = second_moments(model, BEGINNING, [2], text, 320, row_length=32)[2]
    ids = TOKENIZER.encode(text.read_text(), add_special_tokens=False)[:320]
    rows = [[BOS, *row] for row in np.reshape(ids, (10, 32)).tolist()]
    keys = directly_keys(model, 2, rows)[:, 1:].reshape(320, -1)
    assert moment.count == 320
    assert relative(moment.value(), keys.T @ keys / 320) < 1e-5
    assert relative(moment.mean(), keys.mean(0)) < 1e-5
    without = second_moments(model, TOKENIZER, [2], text, 320, row_length=32)[2]
    assert relative(moment.value(), without.value()) > 1e-3


def test_own_samples_are_run_after_what_they_were_drawn_from(model, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 4)
    rows = list(islice(corpus.rows(model, BEGINNING, "self", 12), 8))
    keys = directly_keys(model, 1, [[BOS, *row] for row in rows])[:, 1:].reshape(96, -1)
    moment = second_moments(model, BEGINNING, [1], "self", 96, row_length=12)[1]
    assert moment.count == 96 and relative(moment.value(), keys.T @ keys / 96) < 1e-5


def test_stored_moments_say_what_their_texts_begin_with(model, text, tmp_path):
    options = dict(corpus=text, tokens=64, row_length=16)
    for tokenizer, begins in ((TOKENIZER, []), (BEGINNING, [BOS])):
        output = tmp_path / str(begins)
        second_moments(model, tokenizer, [1], output=output, **options)
        about = store.read_about(store.layer_path(output, 1))
        assert about["begins_with"] == begins and about["format"] == "rome-mlx moments 2"


@pytest.mark.parametrize("use", ["resume", "directory", "cache", "object"])
def test_moments_without_the_beginning_are_refused_where_texts_have_it(
        use, model, text, tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path))
    directory, options = tmp_path / "moments/mine", dict(corpus=text, row_length=16)
    moments = second_moments(model, TOKENIZER, [1], tokens=64, output=directory, **options)
    as_format_1(store.layer_path(directory, 1))
    lookup.moment_matrix(model, TOKENIZER, 1)  # where texts begin with nothing it serves
    given = {"directory": directory, "object": moments, "cache": None}
    said = "no second moments" if use == "cache" else r"begin with the tokens \[\].*\[0\].*again"
    with pytest.raises(RomeError, match=said):
        if use == "resume":
            second_moments(model, BEGINNING, [1], tokens=128, output=directory, **options)
        else:
            lookup.moment_matrix(model, BEGINNING, 1, given[use])


def as_format_1(path) -> None:
    """The file as versions before 0.2 wrote it."""
    with safe_open(str(path), "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in ("upper", "mean")}
    about = store.read_about(path) | {"format": "rome-mlx moments 1"}
    del about["begins_with"]
    save_file(tensors, path, {name: json.dumps(value) for name, value in about.items()})
