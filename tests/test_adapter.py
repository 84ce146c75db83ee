"""Saved edits: written whole or not at all, and read with care, whoever wrote them."""

import json
import os

import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing.edit import LowRank
from rome_mlx.editing.methods import METHODS
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import fingerprint

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")
PATH = "model.layers.1.mlp.down_proj"


def some_edit(seed=0, keys=False, **fields):
    random = np.random.RandomState(seed)
    whose = fingerprint(Decoder(tiny_model("llama")).module(1, "down"))
    out, into = int(whose[0]), int(whose[1])
    delta = LowRank(random.randn(into, 1), random.randn(1, out))
    return rm.Edit("rome", [REQUEST], {PATH: delta}, [1], fingerprints={PATH: whose},
                   keys={PATH: random.randn(into, 1)} if keys else {}, **fields)


@pytest.fixture
def saved(tmp_path):
    some_edit(keys=True).save(tmp_path / "edit")
    return tmp_path / "edit"


def test_factors_in_any_order_of_memory_are_saved_as_they_are(tmp_path):
    edit = some_edit()
    (out, into), random = edit.deltas[PATH].shape, np.random.RandomState(0)
    delta = LowRank(np.asfortranarray(random.randn(into, 3)), random.randn(out, 3).T)
    edit.deltas[PATH] = delta
    edit.save(tmp_path / "edit")
    found = rm.load_edit(tmp_path / "edit").deltas[PATH]
    np.testing.assert_allclose(found.change, delta.change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_edit_is_the_same_when_it_is_loaded(name, tmp_path):
    method, model = METHODS[name], tiny_model("llama")
    requests = [rm.EditRequest("{} is in", subject, "xy") for subject in ("abc", "bcd", "cde")]
    options = {"moments": dict.fromkeys(range(4), np.eye(48))} if method.needs_moments else {}
    where = [1, 2] if isinstance(method.layers_up_to(2, method.resolve(None)), list) else 1
    edit = method.write(model, FakeTokenizer(), requests[0] if method.one_by_one else requests,
                        where, **options)
    edit.save(tmp_path / "edit")
    found = rm.load_edit(tmp_path / "edit")
    assert found.deltas.keys() == edit.deltas.keys()
    for path, delta in edit.deltas.items():
        largest = np.abs(delta.change).max()
        assert largest > 0
        np.testing.assert_allclose(found.deltas[path].change, delta.change, atol=1e-5 * largest)


@pytest.mark.parametrize("name", ["edit.json", "adapter_config.json", "adapters.safetensors",
                                  "keys.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\x00" * 100, b"[" * 100_000, None,
                                     "half"])
def test_a_damaged_saved_edit_is_refused_in_one_sentence(saved, name, content, capsys):
    file = saved / name
    whole = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(rm.RomeError) as refused:
        rm.load_edit(saved)
    assert str(saved) in str(refused.value) and "\n" not in str(refused.value)
    assert main(["edits", "show", str(saved)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def put(value, *where):
    def change(about):
        for name in where[:-1]:
            about = about[name]
        about[where[-1]] = value

    return change


DAMAGE = {
    "another format": put("rome-mlx edit 0", "format"),
    "no requests": put([], "requests"),
    "a request without a target": put([{"prompt": "{}", "subject": "a"}], "requests"),
    "a request with two places": put("{} {}", "requests", 0, "prompt"),
    "no weights": put({}, "ranks"),
    "a weight that is not stored": put(1, "ranks", "model.layers.2.mlp.down_proj"),
    "a rank of nothing": put(0, "ranks", PATH),
    "a rank of more than is stored": put(2, "ranks", PATH),
    "a rank that is a text": put("1", "ranks", PATH),
    "layers that are texts": put(["../.."], "layers"),
    "an unknown method's hyperparameters": put("magic", "method"),
    "an unknown hyperparameter": put(1, "hyperparameters", "v_lrr"),
    "no fingerprint": put({}, "fingerprints"),
    "a fingerprint of a text": put(["a", "b", "c"], "fingerprints", PATH),
    "a fingerprint of a wider weight": put(1000.0, "fingerprints", PATH, 1),
    "keys that are not stored": put(["model.layers.3.mlp.down_proj"], "keys"),
    "numbers that are a list": put([], "numbers"),
    "a model outside": put("edits/../../../model", "model", "path"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_description_that_lies_is_refused(tmp_path, damage):
    edit = some_edit(keys=True, hyperparameters=rm.Hyperparameters())
    edit.save(tmp_path / "edit")
    assert rm.load_edit(tmp_path / "edit").requests == [REQUEST]
    about = json.loads((tmp_path / "edit/edit.json").read_text())
    damage(about)
    (tmp_path / "edit/edit.json").write_text(json.dumps(about))
    with pytest.raises(rm.RomeError, match="not a whole saved edit"):
        rm.load_edit(tmp_path / "edit")


@pytest.mark.parametrize("damage", [put(20.0, "lora_parameters", "scale"),
                                    put(["self_attn.q_proj"], "lora_parameters", "keys"),
                                    put({}, "lora_parameters")])
def test_an_adapter_config_that_does_something_else_in_mlx_lm_is_refused(saved, damage):
    config = json.loads((saved / "adapter_config.json").read_text())
    damage(config)
    (saved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(rm.RomeError, match="not a whole saved edit"):
        rm.load_edit(saved)


@pytest.mark.parametrize("name", ["edit.json", "adapter_config.json", "adapters.safetensors",
                                  "keys.safetensors"])
def test_links_out_of_the_directory_are_not_followed(saved, tmp_path, name):
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(rm.RomeError, match=f"{name} is a symbolic link"):
        rm.load_edit(saved)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    edit = some_edit()
    edit.deltas[PATH].a[3] = np.inf
    edit.save(tmp_path / "edit")
    with pytest.raises(rm.RomeError, match="not finite"):
        rm.load_edit(tmp_path / "edit")


@pytest.mark.parametrize("path", ["model.embed_tokens", "model.layers.1", "model.layers", "model.",
                                  "model.layers.1.mlp", "model.layers.-9.mlp.down_proj", "../x",
                                  "model.norm", "__class__", "model.layers.1.mlp.up_proj"])
def test_an_edit_of_anything_but_a_linear_module_of_its_shape_is_refused_untouched(path):
    model = tiny_model("llama")
    good, = some_edit().deltas.values()
    edit = rm.Edit("rome", [REQUEST], {PATH: good, path: good}, [1])
    before = np.array(model.layers[1].mlp.down_proj.weight)
    with pytest.raises(rm.RomeError, match="edit is"):
        edit.apply(model, force=True)
    np.testing.assert_array_equal(np.array(model.layers[1].mlp.down_proj.weight), before)


def test_an_edit_takes_the_place_of_an_earlier_one_whole(saved):
    some_edit(seed=1).save(saved)
    assert sorted(os.listdir(saved)) == ["adapter_config.json", "adapters.safetensors",
                                         "edit.json"]
    np.testing.assert_allclose(rm.load_edit(saved).right_vector, some_edit(seed=1).right_vector,
                               rtol=1e-6)
    assert os.listdir(saved.parent) == ["edit"]


@pytest.mark.parametrize("step", ["rome_mlx.editing.adapter.save_file",
                                  "rome_mlx.editing.adapter._about",
                                  "rome_mlx.storage.files.os.chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt])
def test_a_save_that_fails_leaves_the_earlier_edit_as_it_was(saved, monkeypatch, step, error):
    def fail(*args, **kwargs):
        raise error

    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    monkeypatch.setattr(step, fail)
    with pytest.raises((rm.RomeError, KeyboardInterrupt)):
        some_edit(seed=1).save(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == files
    assert os.listdir(saved.parent) == ["edit"]


def test_a_move_that_fails_puts_the_earlier_edit_back(saved, monkeypatch):
    move, moves = os.replace, []

    def once(source, target):
        moves.append(target)
        if len(moves) == 2:  # the new edit into its place
            raise OSError(5, "Input/output error")
        move(source, target)

    monkeypatch.setattr("rome_mlx.storage.files.os.replace", once)
    with pytest.raises(rm.RomeError, match="Input/output error"):
        some_edit(seed=1).save(saved)
    np.testing.assert_allclose(rm.load_edit(saved).right_vector, some_edit().right_vector,
                               rtol=1e-6)
    assert os.listdir(saved.parent) == ["edit"]


def test_an_edit_is_not_saved_over_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(rm.RomeError, match=r"thesis\.tex"):
        some_edit().save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(rm.RomeError, match="not a directory"):
        some_edit().save(tmp_path / "link")


def test_a_stack_of_several_methods_is_saved_and_loaded(tmp_path):
    one = some_edit(hyperparameters=rm.Hyperparameters())
    two = some_edit(seed=1, hyperparameters=rm.Hyperparameters())
    two.method = "r-rome"
    rm.stack([one, two]).save(tmp_path / "stack")
    again = rm.load_edit(tmp_path / "stack")
    assert again.method == "stack" and again.hyperparameters is None
    assert again.deltas[PATH].rank == 2 and again.requests == [REQUEST, REQUEST]


def test_the_command_line_applies_a_saved_edit_as_an_edit(saved, tmp_path, capsys):
    from argparse import Namespace

    from mlx_lm.utils import save
    from tiny import _COMMON

    from rome_mlx.cli.common import load_model
    from rome_mlx.models.applied import edits_of

    save(tmp_path / "model", str(tmp_path), tiny_model("llama"), FakeTokenizer(),
         {**_COMMON, "model_type": "llama"})
    args = Namespace(model=str(tmp_path / "model"), adapter_path=str(saved), dtype="float32",
                     trust_remote_code=False)
    edit, = edits_of(load_model(args)[0])
    assert edit.requests == [REQUEST] and edit.keys.keys() == {PATH}
    (saved / "edit.json").unlink()  # now it is any adapter of mlx-lm's
    model, _ = load_model(args)
    assert not edits_of(model) and "lora_a" in model.layers[1].mlp.down_proj
