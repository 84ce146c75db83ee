"""Which hyperparameters a model gets."""

import dataclasses
import json

import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing import hyperparameters as module
from rome_mlx.editing.hyperparameters import depth_layer, preset_name
from rome_mlx.editing.layer_choice import layer_to_edit
from rome_mlx.editing.methods import METHODS
from rome_mlx.evaluation.case_edits import Editing
from rome_mlx.models.decoder import Decoder

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
        own = METHODS[method].resolve(None, known)
        assert own == METHODS[method].presets["gpt-j"] and own.preset == "gpt-j"


def test_the_published_ones_stay_at_hand_without_the_layers_of_their_own_model(known):
    published = METHODS["rome"].resolve("published", known)
    assert (published.v_num_grad_steps, published.clamp_norm_factor) == (20, 4)
    assert published.preset.startswith("published")
    assert published.layer is None and METHODS["rome"].published.layer == 17
    assert METHODS["memit"].resolve("llama-3-8b", known).layers is None
    assert METHODS["memit"].resolve("gpt-j", known).layers == (3, 4, 5, 6, 7, 8)


def test_changes_are_to_the_models_own_and_say_so(known):
    changed = METHODS["memit"].resolve({"v_lr": 0.1}, known)
    assert changed == dataclasses.replace(METHODS["memit"].presets["gpt-j"], v_lr=0.1)
    assert changed.preset == "gpt-j, changed"


def test_sizes_tell_models_of_one_type_apart():
    assert preset_name(Decoder(tiny_model("llama"))) is None
    names = set(module._MODELS.values())
    assert {"gpt2-xl", "gpt-j", "llama-2-7b", "llama-3-8b", "mistral-7b"} <= names
    assert names == set(METHODS["rome"].presets)


@pytest.mark.parametrize(("method", "words"), [
    ("rome", "gpt2-xl's, changed, "), ("memit", "gpt2-xl's, "),
    ("alphaedit", "gpt2-xl's, changed, "),
    ("emmet", "gpt2-xl's, "), ("ft", "gpt2-xl's, ")])
def test_an_unknown_model_gets_a_layer_by_its_depth_and_words_that_say_so(method, words):
    decoder, editor = Decoder(tiny_model("llama", num_hidden_layers=20)), METHODS[method]
    hp = editor.resolve(None, decoder)
    assert depth_layer(decoder) == 3 and editor.layer_of(hp) is None
    assert hp.preset == f"{words}for want of this model's"
    choice = layer_to_edit(decoder, editor)
    assert (choice.layer, choice.how) == (3, "depth")
    many = {"memit": [0, 1, 2, 3], "alphaedit": [0, 1, 2, 3], "emmet": [3]}
    assert editor.layers_up_to(3, hp) == many.get(method, 3)


def test_a_methods_own_layers_are_kept_where_they_end_at_the_chosen_one():
    hp = rm.MemitHyperparameters(layers=(2, 4, 6))
    assert METHODS["memit"].layers_up_to(6, hp) == [2, 4, 6]
    assert METHODS["memit"].layers_up_to(5, hp) == [3, 4, 5]
    assert METHODS["rome"].layers_up_to(6, rm.Hyperparameters(layer=2)) == 6
    assert METHODS["lora"].layers_up_to(6, rm.LoraHyperparameters()) is None


@pytest.mark.parametrize(("method", "given", "layer"), [
    ("memit", {"layers": [0, 2]}, 2), ("rome", {"layer": 1}, 1), ("ft", {"layer": 1}, 1),
    ("rome", rm.Hyperparameters(layer=1), 1)])
def test_hyperparameters_that_name_a_layer_give_it(method, given, layer):
    choice = layer_to_edit(Decoder(tiny_model("llama")), METHODS[method], hyperparameters=given)
    assert (choice.layer, choice.how) == (layer, "given")


@pytest.mark.parametrize(("method", "given"), [
    ("rome", None), ("memit", "published"), ("lora", None), ("rome", {"v_lr": 0.1}),
    ("rome", rm.Hyperparameters())])
def test_hyperparameters_that_name_none_leave_it_open(method, given):
    choice = layer_to_edit(Decoder(tiny_model("llama")), METHODS[method], hyperparameters=given)
    assert choice.how == "depth"


def test_published_hyperparameters_do_not_bring_their_models_layer(default_model):
    """On the command line they edited GPT-2 XL's layer 17, and called it this model's preset."""
    decoder = Decoder(default_model[0])
    for given in ("published", "gpt-j"):
        choice = layer_to_edit(decoder, METHODS["rome"], hyperparameters=given)
        assert (choice.layer, choice.how) == (6, "profile")
    own = layer_to_edit(decoder, METHODS["rome"])
    assert (own.layer, own.how) == (5, "calibration") and "smollm2-135m" in own.reason


@pytest.mark.parametrize(("method", "layers"), [
    ("rome", 5), ("memit", [4, 5, 6]), ("emmet", [6]), ("alphaedit", [4, 5, 6]), ("none", 5)])
def test_a_benchmark_edits_the_default_model_where_the_methods_preset_says(
        method, layers, default_model, tmp_path):
    editing = Editing(*default_model, method, "auto", None, None, None, ["{}"], 0, 1, tmp_path)
    assert editing.where == layers


@pytest.mark.parametrize("method", ["rome", "r-rome", "p-rome"])
def test_an_unknown_model_gets_the_steps_in_the_ball(method):
    hp = METHODS[method].resolve(None, Decoder(tiny_model("llama")))
    assert dataclasses.replace(hp, layer=5) == METHODS[method].presets["smollm2-135m"]
    assert METHODS[method].resolve("published").v_rule == "adam"


def test_rome_on_an_unknown_model_wants_a_layer():
    hp = METHODS["rome"].resolve(None, Decoder(tiny_model("llama")))
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
