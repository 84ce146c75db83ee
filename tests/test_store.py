"""Moments on disk are whole or not there, go on where they stopped, and are of one model."""

import json
import os

import numpy as np
import pytest
from fakes import FakeTokenizer
from safetensors.numpy import save_file
from samples import letters, relative
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.moments import estimator, lookup, store
from rome_mlx.moments.estimator import second_moments

TOKENIZER = FakeTokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def text(tmp_path):
    return letters(tmp_path, 600)


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


@pytest.mark.parametrize("place", [(os, "replace"), (store, "save_file")])
@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(
        place, error, model, text, tmp_path, monkeypatch):
    arguments = dict(corpus=text, row_length=16)
    output = tmp_path / "moments"
    second_moments(model, TOKENIZER, [1], tokens=64, **arguments, output=output)
    before = store.layer_path(output, 1).read_bytes()
    interrupt(monkeypatch, *place, 0, error)
    with pytest.raises(RomeError if error is OSError else error, match=r"cannot write|stopped"):
        second_moments(model, TOKENIZER, [1], tokens=128, **arguments, output=output)
    monkeypatch.undo()
    assert [p.name for p in output.iterdir()] == ["layer-1.safetensors"]
    assert store.layer_path(output, 1).read_bytes() == before


def test_an_output_that_is_no_directory_is_refused_before_the_work(model, text, monkeypatch):
    monkeypatch.setattr(estimator, "rows", None)
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
