"""Models that are read again and again compute what held ones do."""

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from saved_model import save_tiny

import rome_mlx as rm
from rome_mlx.evaluation.side_effects import final_states
from rome_mlx.models import streaming
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import Identity
from rome_mlx.models.weights import cast

IDS = [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.fixture
def directory(tmp_path):
    return save_tiny(tmp_path / "model")


@pytest.fixture
def streamed(directory, monkeypatch):
    """A model that lets go of all it read after every layer, and how often it was loaded."""
    def again():
        return cast(rm.load(directory, dtype="stored", lazy=True)[0], mx.float32, lazy=True)

    count = []
    monkeypatch.setattr(streaming, "HELD", 0)
    yield streaming.streaming(again(), lambda: count.append(1) or again()), count


def test_it_computes_the_same_and_reads_once_a_layer(directory, streamed):
    model, count = streamed
    held, _ = rm.load(directory, dtype="float32")
    for ours, theirs in zip(final_states(model, IDS), final_states(held, IDS), strict=True):
        assert np.array_equal(np.array(ours), np.array(theirs))
    assert len(count) >= len(Decoder(model).layers)
    assert Identity.of(model) == Identity.of(held)


def test_what_was_read_is_let_go(streamed):
    model, _ = streamed
    size = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    before = mx.get_active_memory()
    final_states(model, IDS)
    assert mx.get_active_memory() - before < size / 2


def test_edits_stay(directory, streamed):
    model, _ = streamed
    held, tokenizer = rm.load(directory, dtype="float32")[0], FakeTokenizer()
    width = Decoder(held).key_width
    edit = rm.rome(held, tokenizer, rm.EditRequest("{} is in", "catix", "xy"), 1,
                   moments={1: np.eye(width)}, context_templates=["{}"],
                   hyperparameters={"v_num_grad_steps": 5})
    unedited = final_states(held, IDS)
    with edit.applied(held), edit.applied(model):
        for ours, theirs in zip(final_states(model, IDS), final_states(held, IDS), strict=True):
            assert np.array_equal(np.array(ours), np.array(theirs))
        assert not np.array_equal(np.array(ours), np.array(unedited[-1]))
    for ours, theirs in zip(final_states(model, IDS), unedited, strict=True):
        assert np.array_equal(np.array(ours), np.array(theirs))
