"""Saved edits shown, stacked, and fused into full models that mlx-lm loads."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx_lm.utils import load_config, save
from tiny import _COMMON, tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing.edit import LowRank
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import fingerprint

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")
TOKENS = mx.array([[5, 6, 7, 8]])


@pytest.fixture(params=["float32", "bfloat16", "4-bit"])
def saved_model(request, tmp_path):
    """(directory of a tiny model, its kind)"""
    model = tiny_model("llama", intermediate_size=64)
    config = {**_COMMON, "intermediate_size": 64,
              "model_type": "llama"}
    if request.param == "bfloat16":
        model.set_dtype(mx.bfloat16)
    if request.param == "4-bit":
        nn.quantize(model, group_size=32, bits=4)
        config["quantization"] = {"group_size": 32, "bits": 4}
    save(tmp_path / "model", str(tmp_path), model, FakeTokenizer(), config)
    return tmp_path / "model", request.param


def make_edit(directory, layer, seed, scale=0.3):
    model, _ = rm.load(directory, dtype="stored")
    path, random = f"model.layers.{layer}.mlp.down_proj", np.random.RandomState(seed)
    return rm.Edit("rome", [REQUEST], {path: LowRank(scale * random.randn(64, 1),
                                                     random.randn(1, 32))},
                   [layer], model={"path": str(directory), "type": "llama", "dtype": "float32"},
                   fingerprints={path: fingerprint(Decoder(model).module(layer, "down"))})


def logits(model):
    return np.array(model(TOKENS).astype(mx.float32))


@pytest.mark.parametrize("more", [[], ["--dequantize"]])
def test_mlx_lm_loads_the_fused_model(saved_model, tmp_path, capsys, more):
    directory, kind = saved_model
    edits = [make_edit(directory, layer, layer) for layer in (0, 2)]
    for i, edit in enumerate(edits):
        edit.save(tmp_path / f"edit{i}")
    arguments = ["edits", "fuse", str(tmp_path / "edit0"), str(tmp_path / "edit1"), "--save-path",
                 str(tmp_path / "fused"), "--json", str(tmp_path / "fused.json"), *more]
    assert main(arguments) == 0
    model, _ = mlx_lm.load(str(directory))
    plain = logits(model)
    with rm.stack(edits).applied(model):
        expected = logits(model)
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    tolerance = {"float32": 1e-4, "4-bit": 1e-3, "bfloat16": 0.15}[kind]
    assert np.abs(expected - plain).max() > 2 * tolerance
    np.testing.assert_allclose(logits(fused), expected, atol=tolerance)

    lost = json.loads((tmp_path / "fused.json").read_text())["lost"]
    assert len(lost) == 2
    for path, error in lost.items():
        assert error < (1e-6 if kind != "bfloat16" else 0.02)
        assert kind != "bfloat16" or error > 1e-5
        weight = Decoder(fused).module(int(path.split(".")[2]), "down")
        assert isinstance(weight, nn.Linear)
    untouched = Decoder(fused).module(1, "down")
    assert isinstance(untouched, nn.QuantizedLinear) == (kind == "4-bit" and not more)
    assert "rounding cost" in capsys.readouterr().out
    assert ("quantization" in load_config(tmp_path / "fused")) == (kind == "4-bit" and not more)


def test_nothing_is_written_over_anything(saved_model, tmp_path, capsys, monkeypatch):
    directory, _ = saved_model
    make_edit(directory, 0, 0).save(tmp_path / "edit")
    make_edit(directory, 1, 0).save(tmp_path / "other")

    def refuse(*args, **kwargs):
        raise AssertionError("the weights were read before the arguments were checked")

    monkeypatch.setattr("rome_mlx.models.loading.load", refuse)
    before = sorted(directory.iterdir())
    assert main(["edits", "fuse", str(tmp_path / "edit"), "--save-path", str(directory)]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["edits", "stack", str(tmp_path / "edit"), str(tmp_path / "other"), "--save-path",
                 str(directory)]) == 2
    assert "other files" in capsys.readouterr().err
    assert sorted(directory.iterdir()) == before


def test_an_edit_of_other_weights_is_fused_only_by_force(tmp_path, capsys):
    config = {**_COMMON, "model_type": "llama", "intermediate_size": 64}
    for name, seed in (("one", 0), ("other", 1)):
        save(tmp_path / name, str(tmp_path), tiny_model("llama", seed, intermediate_size=64),
             FakeTokenizer(), config)
    make_edit(tmp_path / "one", 0, 0).save(tmp_path / "edit")
    arguments = ["edits", "fuse", str(tmp_path / "edit"), "--model", str(tmp_path / "other"),
                 "--save-path", str(tmp_path / "fused")]
    assert main(arguments) == 2 and not (tmp_path / "fused").exists()
    assert "computed for" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0 and (tmp_path / "fused/config.json").exists()


def test_show_names_facts_modules_and_probabilities(saved_model, tmp_path, capsys):
    edit = make_edit(saved_model[0], 1, 0)
    edit.numbers = {"probabilities": [{"target_new_before": 0.01, "target_new_after": 0.987}]}
    edit.save(tmp_path / "edit")
    assert main(["edits", "show", str(tmp_path / "edit"), "--json", str(tmp_path / "t.json")]) == 0
    row, = json.loads((tmp_path / "t.json").read_text())
    module = row["modules"]["model.layers.1.mlp.down_proj"]
    model, _ = rm.load(saved_model[0], dtype="stored")
    assert module["norm_change"] == pytest.approx(
        edit.norm_change(model)["model.layers.1.mlp.down_proj"], rel=1e-5)
    out = capsys.readouterr().out
    for part in ("rome at layer 1, of model", "ab cde lives in → xy", "0.010 → 0.987"):
        assert part in out
    line, = (line for line in out.splitlines() if "down_proj" in line)
    assert line.split() == ["model.layers.1.mlp.down_proj", "1", f"{module['norm_change']:.1%}"]


def test_show_is_a_table_of_80_columns_whatever_the_edit_holds(saved_model, tmp_path, capsys):
    edit = make_edit(saved_model[0], 1, 0)
    edit.requests = [rm.EditRequest("of all the {} " + "that are there " * 3, f"\x1b[2Js{i}",
                                    "x" * 40) for i in range(25)]
    edit.model = {"path": "somewhere/" + "deep" * 40, "dtype": "4-bit"}
    edit.numbers = {"checks": [{"probabilities": [{"target_new_before": "\x1b",
                                                   "target_new_after": None}]}] * 25}
    edit.save(tmp_path / "edit")
    assert main(["edits", "show", str(tmp_path / "edit")]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "\x1b" not in out and "15 more facts" in out


def test_stack_saves_one_edit_that_does_both(tmp_path):
    model = tiny_model("llama", intermediate_size=64)
    save(tmp_path / "model", str(tmp_path), model, FakeTokenizer(),
         {**_COMMON, "model_type": "llama", "intermediate_size": 64}, donate_model=False)
    edits = [make_edit(tmp_path / "model", layer, layer) for layer in (0, 2)]
    for i, edit in enumerate(edits):
        edit.save(tmp_path / f"edit{i}")
    assert main(["edits", "stack", str(tmp_path / "edit0"), str(tmp_path / "edit1"),
                 "--save-path", str(tmp_path / "both")]) == 0
    with rm.stack(edits).applied(model):
        expected = logits(model)
    with rm.load_edit(tmp_path / "both").applied(model):
        np.testing.assert_allclose(logits(model), expected, atol=1e-5)


def test_a_directory_that_is_no_edit_is_refused(tmp_path, capsys):
    for arguments in (["show"], ["stack", "--save-path", "x"], ["fuse", "--save-path", "x"]):
        assert main(["edits", arguments[0], str(tmp_path), *arguments[1:]]) == 2
        assert "edit" in capsys.readouterr().err
