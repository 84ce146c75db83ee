"""Which hyperparameters a model gets."""

import dataclasses
import json

import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing import hyperparameters as module
from rome_mlx.editing.hyperparameters import PRESETS, depth_layer, hyperparameters, preset_name
from rome_mlx.editing.methods import layers_up_to
from rome_mlx.evaluation.run import Editing
from rome_mlx.models.decoder import Decoder
from rome_mlx.pipeline import own_layer, usual_layer

REQUEST = rm.EditRequest("{} was", "a long subject", "b")
TINY = ("llama", 4, 32, 48, 128)  # type and sizes of the tiny model


@pytest.fixture
def known(monkeypatch):
    """A decoder of a model that is known as gpt-j."""
    monkeypatch.setitem(module._MODELS, TINY, "gpt-j")
    return Decoder(tiny_model("llama"))


def test_a_known_model_gets_its_own_preset(known):
    assert preset_name(known) == "gpt-j"
    for method in ("rome", "memit", "alphaedit", "ft"):
        assert hyperparameters(None, method, known) == PRESETS[method]["gpt-j"]
        assert hyperparameters(None, method, known).preset == "gpt-j"
    assert usual_layer(known) == PRESETS["rome"]["gpt-j"].layer


def test_the_published_ones_stay_at_hand(known):
    published = hyperparameters("published", "rome", known)
    assert (published.layer, published.v_num_grad_steps, published.clamp_norm_factor) == (17, 20, 4)
    assert published.preset.startswith("published")


def test_changes_are_to_the_models_own_and_say_so(known):
    changed = hyperparameters({"v_lr": 0.1}, "memit", known)
    assert changed == dataclasses.replace(PRESETS["memit"]["gpt-j"], v_lr=0.1)
    assert changed.preset == "gpt-j, changed"


def test_sizes_tell_models_of_one_type_apart():
    assert preset_name(Decoder(tiny_model("llama"))) is None
    names = set(module._MODELS.values())
    assert {"gpt2-xl", "gpt-j", "llama-2-7b", "llama-3-8b", "mistral-7b"} <= names
    assert names == set(PRESETS["rome"])


@pytest.mark.parametrize("method", ["memit", "alphaedit", "emmet", "ft"])
def test_an_unknown_model_gets_layers_by_its_depth_and_words_that_say_so(method):
    decoder = Decoder(tiny_model("llama", num_hidden_layers=20))
    hp = hyperparameters(None, method, decoder)
    assert depth_layer(decoder) == 3
    assert (hp.layer if method == "ft" else hp.layers[-1]) == 3
    assert "gpt2-xl" in hp.preset and "layer 3 by depth" in hp.preset


def test_a_methods_own_layers_are_kept_where_they_end_at_the_chosen_one():
    hp = rm.MemitHyperparameters(layers=(2, 4, 6))
    assert list(layers_up_to("memit", 6, hp)) == [2, 4, 6]
    assert list(layers_up_to("memit", 5, hp)) == [3, 4, 5]
    assert layers_up_to("rome", 6, rm.Hyperparameters(layer=2)) == 6


@pytest.mark.parametrize(("method", "given", "layer"), [
    ("memit", {"layers": [0, 2]}, 2), ("rome", {"layer": 1}, 1), ("ft", {"layer": 1}, 1),
    ("rome", None, None), ("memit", "published", None), ("lora", None, None)])
def test_a_methods_own_layer_is_what_its_hyperparameters_for_this_model_name(method, given, layer):
    decoder = Decoder(tiny_model("llama"))
    assert own_layer(decoder, given, hyperparameters(given, method, decoder)) == layer


@pytest.mark.parametrize(("method", "layers"), [
    ("rome", 5), ("memit", (4, 5, 6)), ("emmet", (6,)), ("alphaedit", (4, 5, 6)), ("none", 5)])
def test_a_benchmark_edits_the_default_model_where_the_methods_preset_says(
        method, layers, default_model):
    editing = Editing(*default_model, method, "auto", None, None, ["{}"], 0, 1, False)
    assert editing.where == layers


def test_rome_on_an_unknown_model_wants_a_layer():
    hp = hyperparameters(None, "rome", Decoder(tiny_model("llama")))
    assert hp.layer is None and "for want of" in hp.preset
    with pytest.raises(rm.RomeError, match="which layer"):
        rm.rome(tiny_model("llama"), FakeTokenizer(), REQUEST, moments={})


def test_where_the_numbers_came_from_is_saved_with_the_edit(tmp_path):
    model = tiny_model("llama")
    edit = rm.rome(model, FakeTokenizer(), REQUEST, 1, moments={1: np.eye(48)},
                   context_templates=["{}"])
    edit.save(tmp_path / "edit")
    about = json.loads((tmp_path / "edit/edit.json").read_text())
    assert about["hyperparameters"]["preset"] == edit.hyperparameters.preset
    assert rm.load_edit(tmp_path / "edit").hyperparameters.preset == edit.hyperparameters.preset


def test_both_copies_of_the_default_model_are_known(default_model, default_model_4bit):
    for model, _ in (default_model, default_model_4bit):
        assert preset_name(Decoder(model)) == "smollm2-135m"
