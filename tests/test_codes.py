"""Edits of quantized weights as changes of their codes: same file, same size, and back."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx_lm.utils import save
from safetensors.numpy import load_file, save_file
from tiny import _COMMON, tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing.adapter import read_edit
from rome_mlx.editing.fuse import fuse
from rome_mlx.editing.lowrank import LowRank, dense
from rome_mlx.editing.quantized import _LEAST, _MULTIPLES, nearest
from rome_mlx.models import codes
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import Identity, fingerprint
from rome_mlx.models.weights import weight

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")
OTHER = rm.EditRequest("ab {} sings in", "efg", "xz")
PATH = "model.layers.{}.mlp.down_proj"
#: small, so that the key is as unlike other keys as real ones are
MOMENTS = {layer: 1e-2 * np.eye(64) for layer in range(4)}


def quantized_model(bits=4, group_size=32, seed=0):
    model = tiny_model("llama", seed=seed, intermediate_size=64)
    nn.quantize(model, group_size=group_size, bits=bits)
    return model


def float_edit(model, request=REQUEST, layer=1, moments=MOMENTS):
    return rm.rome(model, FakeTokenizer(), request, layer, moments=moments,
                   context_templates=["{}", "ba {}"], hyperparameters={"v_num_grad_steps": 5})


def code_edit(model, request=REQUEST, layer=1):
    return float_edit(model, request, layer).quantized(model, FakeTokenizer(), moments=MOMENTS)


def stored(model):
    return {path: np.array(module.weight) for path, module in model.named_modules()
            if isinstance(module, nn.QuantizedLinear)}


def same_arrays(one, other):
    return set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_codes_are_read_and_written_as_mlx_stores_them(bits, group_size):
    module = nn.QuantizedLinear.from_linear(nn.Linear(128, 24, bias=False), group_size, bits)
    found = codes.codes_of(module)
    biases = np.repeat(np.array(module.biases), group_size, 1)
    np.testing.assert_allclose(found * codes.scales_of(module) + biases, np.array(weight(module)),
                               atol=1e-5)
    assert mx.array_equal(codes.packed(found, bits), module.weight)
    changed = found.copy()
    changed[3, 5] = (changed[3, 5] + 1) % 2**bits
    again = codes.recoded(module, [codes.steps_of(changed - found, codes.scales_of(module), "")])
    assert np.array_equal(codes.codes_of(again), changed)
    assert np.array_equal(codes.codes_of(module), found) and again.scales is module.scales


def cost(steps, change, metric, scales):
    error = steps * scales - change
    return np.einsum("ri,ij,rj->r", error, metric, error)


def greedy(change, keys, metric, codes, scales, most):
    """The same, every step's worth computed anew from what is minimised."""
    steps = np.zeros(change.shape, int)
    start = cost(steps, change, metric, scales)
    for row in range(len(change)):
        rounded = [np.clip(np.rint(multiple * change[row] / scales[row]), -codes[row],
                           most - codes[row]) for multiple in _MULTIPLES]
        steps[row] = min(rounded, key=lambda n, row=row: np.linalg.norm(
            (n * scales[row] - change[row]) @ keys))
    for row, least in enumerate(_LEAST * start):
        while True:
            gradient = (steps[row] * scales[row] - change[row]) @ metric
            curvature = scales[row] ** 2 * np.diag(metric)
            n = np.clip(np.rint(-gradient * scales[row] / curvature),
                        -codes[row] - steps[row], most - codes[row] - steps[row])
            gain = -n * (2 * gradient * scales[row] + n * curvature)
            if gain.max() <= least:
                break
            steps[row, gain.argmax()] += int(n[gain.argmax()])
    return steps


@pytest.mark.parametrize("seed", range(5))
def test_steps_are_such_that_no_single_code_gains(seed):
    random = np.random.RandomState(seed)
    keys = random.randn(20, 4)
    metric = np.eye(20) + 0.3 * keys @ keys.T
    now, scales = random.randint(0, 16, (6, 20)), random.uniform(0.05, 0.3, (6, 20))
    change = np.outer(random.randn(6), random.randn(20))
    steps = nearest(dense(change.T), keys, metric, now, scales, 15)
    assert np.array_equal(steps, greedy(change, keys, metric, now, scales, 15))
    assert (now + steps).min() >= 0 and (now + steps).max() <= 15
    found, start = cost(steps, change, metric, scales), cost(0 * steps, change, metric, scales)
    assert (found <= start).all() and found.sum() < 0.5 * start.sum()
    for row in range(6):
        for column in range(20):
            for move in (-1, 1):
                if 0 <= now[row, column] + steps[row, column] + move <= 15:
                    other = steps.copy()
                    other[row, column] += move
                    gained = found[row] - cost(other, change, metric, scales)[row]
                    assert gained <= 1.001 * _LEAST * start[row]


def test_a_row_that_is_not_to_change_keeps_its_codes():
    change = dense(np.array([[0.0, 1.0], [0.0, 0.0]]))
    steps = nearest(change, np.eye(2), np.eye(2), np.full((2, 2), 7), np.full((2, 2), 0.25), 15)
    assert steps.tolist() == [[0, 0], [4, 0]]


@pytest.mark.parametrize(("bits", "group_size"), [(3, 32), (4, 32), (8, 32)])
def test_a_code_edit_does_at_its_key_what_the_float_edit_does(bits, group_size):
    model = quantized_model(bits, group_size)
    edit = float_edit(model)
    changed = edit.quantized(model, FakeTokenizer(), moments=MOMENTS)
    key = edit.left_vector / (edit.left_vector @ edit.left_vector)  # C is a multiple of I
    wanted = edit.deltas[PATH.format(1)].change.T @ key
    got = changed.deltas[PATH.format(1)].change.T @ key
    reach = {3: 0.4, 4: 0.3, 8: 0.1}[bits]
    assert np.linalg.norm(got - wanted) < reach * np.linalg.norm(wanted)
    with changed.applied(model):
        module = Decoder(model).module(1, "down")
        assert isinstance(module, nn.QuantizedLinear) and module.bits == bits
        before = np.array(weight(quantized_model(bits, group_size).layers[1].mlp.down_proj))
        np.testing.assert_allclose(np.array(weight(module)) - before,
                                   changed.deltas[PATH.format(1)].change.T, atol=1e-5)


def test_the_fact_survives_in_the_codes():
    model, tokenizer = quantized_model(4), FakeTokenizer()
    ids = mx.array([tokenizer.encode(REQUEST.text)])
    target = tokenizer.encode(REQUEST.target_new)[0]

    def log_probability():
        return float(nn.log_softmax(model(ids)[0, -1])[target])

    before = log_probability()
    moments = rm.second_moments(model, tokenizer, [1], "self", 1280, row_length=32)
    edit = float_edit(model, moments=moments)
    with edit.applied(model):
        wanted = log_probability() - before
    with edit.quantized(model, tokenizer, moments=moments).applied(model):
        got = log_probability() - before
    assert wanted > 0.2 and got > 0.7 * wanted


@pytest.mark.parametrize("seed", range(3))
def test_twenty_edits_in_any_order_leave_every_code_as_it_was(seed):
    model, random = quantized_model(), np.random.RandomState(seed)
    begin, identity = stored(model), Identity.of(model)
    whole = code_edit(model)
    delta = whole.deltas[PATH.format(1)]
    edits = []
    for i in range(20):
        at = random.permutation(len(delta.steps))[:random.randint(1, 30)]
        part = codes.CodeChange(delta.rows[at], delta.columns[at], delta.steps[at],
                                delta.values[at], delta.shape, delta.base)
        edits.append(rm.Edit("rome", [REQUEST], {PATH.format(1): part}, [1], losses=[{"step": i}],
                             fingerprints=whole.fingerprints, model=whole.model))
    edits = list({edit.digest: edit for edit in edits}.values())
    on = []
    for edit in [edits[i] for i in random.permutation(len(edits))]:
        edit.apply(model)
        on.append(edit)
        if random.rand() < 0.4:
            on.pop(random.randint(len(on))).revert(model)
    assert Identity.of(model).unedited.difference(identity) is None
    assert np.allclose(fingerprint(Decoder(model).module(1, "down")),
                       whole.fingerprints[PATH.format(1)])
    for edit in [on[i] for i in random.permutation(len(on))]:
        edit.revert(model)
    assert same_arrays(stored(model), begin)


def test_float_and_code_edits_stand_beside_one_another():
    model = quantized_model()
    begin = stored(model)
    side, inside = float_edit(model), code_edit(model, OTHER)
    with side.applied(model):
        later = code_edit(model, OTHER)
        with inside.applied(model):
            module = Decoder(model).module(1, "down")
            assert "lora_a" in module and module.linear.weight is not None
            assert not np.array_equal(np.array(module.linear.weight), begin[PATH.format(1)])
        assert later.deltas[PATH.format(1)].base == inside.deltas[PATH.format(1)].base
    assert same_arrays(stored(model), begin)
    with pytest.raises(rm.RomeError, match="in float"):
        rm.stack([side, inside])


def test_code_edits_follow_one_another_and_stack():
    model = quantized_model()
    first = code_edit(model)
    first.apply(model)
    second = code_edit(model, OTHER)
    second.apply(model)
    both = stored(model)
    second.revert(model)
    first.revert(model)
    stacked = rm.stack([first, second])
    with stacked.applied(model):
        assert same_arrays(stored(model), both)
    for path, change in stacked.deltas.items():  # a code that both change is counted once
        parts = [edit.deltas[path] for edit in (first, second)]
        places = {(r, c) for part in parts for r, c in zip(part.rows, part.columns, strict=True)}
        assert len(change.steps) <= len(places) and change.norm > 0
        assert np.abs(change.change - sum(part.change for part in parts)).max() < 1e-6


def test_a_saved_code_edit_is_the_edit_it_was(tmp_path):
    model = quantized_model()
    edit = code_edit(model)
    edit.save(tmp_path / "edit")
    assert sorted(p.name for p in (tmp_path / "edit").iterdir()) == ["codes.safetensors",
                                                                     "edit.json"]
    again = rm.load_edit(tmp_path / "edit")
    assert again.digest == edit.digest and again.in_codes
    again.apply(model)
    assert edit.is_applied(model)
    edit.revert(model)
    with pytest.raises(FileNotFoundError):
        mlx_lm.tuner.utils.load_adapters(model, str(tmp_path / "edit"))


@pytest.mark.parametrize("damage", [
    lambda t: t.pop(PATH.format(1) + ".steps"),
    lambda t: t.update({PATH.format(1) + ".rows": t[PATH.format(1) + ".rows"] + 32}),
    lambda t: t.update({PATH.format(1) + ".columns": t[PATH.format(1) + ".columns"] - 64}),
    lambda t: t.update({PATH.format(1) + ".steps": t[PATH.format(1) + ".steps"][:-1]}),
    lambda t: t.update({PATH.format(1) + ".values": t[PATH.format(1) + ".values"] * np.nan})])
def test_a_damaged_code_edit_is_refused(damage, tmp_path):
    code_edit(quantized_model()).save(tmp_path / "edit")
    tensors = load_file(str(tmp_path / "edit/codes.safetensors"))
    damage(tensors)
    save_file(tensors, str(tmp_path / "edit/codes.safetensors"))
    with pytest.raises(rm.RomeError, match="not a whole saved edit"):
        read_edit(tmp_path / "edit")


def test_a_model_of_other_codes_or_none_is_refused_by_name():
    edit = code_edit(quantized_model())
    with pytest.raises(rm.RomeError, match="layers.1.mlp.down_proj is not quantized"):
        edit.apply(tiny_model("llama", intermediate_size=64), force=True)
    other = quantized_model()
    module = other.layers[1].mlp.down_proj
    found = codes.codes_of(module)
    found[0, 0] ^= 1
    module.weight = codes.packed(found, 4)
    with pytest.raises(rm.RomeError, match="not those that this edit was made for"):
        edit.apply(other)
    with pytest.raises(rm.RomeError, match="codes already"):
        edit.quantized(quantized_model(), FakeTokenizer(), moments=MOMENTS)


def test_what_cannot_be_changed_in_codes_is_refused():
    plain = tiny_model("llama", intermediate_size=64)
    with pytest.raises(rm.RomeError, match="is not quantized"):
        float_edit(plain).quantized(plain, FakeTokenizer(), moments=MOMENTS)
    model = tiny_model("llama", intermediate_size=64)
    nn.quantize(model, group_size=32, bits=4, mode="mxfp4")
    with pytest.raises(rm.RomeError, match="mxfp4"):
        float_edit(model).quantized(model, FakeTokenizer(), moments=MOMENTS)
    model = quantized_model()
    path = "model.layers.1.mlp.up_proj"
    other = rm.Edit("lora", [REQUEST], {path: LowRank(np.ones((32, 1)), np.ones((1, 64)))}, [1])
    with pytest.raises(rm.RomeError, match="no down projection"):
        other.quantized(model, FakeTokenizer(), moments=MOMENTS)


@pytest.fixture
def directory(tmp_path):
    model = quantized_model()
    save(tmp_path / "model", str(tmp_path), model, FakeTokenizer(),
         {**_COMMON, "intermediate_size": 64, "model_type": "llama",
          "quantization": {"group_size": 32, "bits": 4}})
    return tmp_path / "model"


def test_a_fused_model_has_the_same_size_and_form(directory, tmp_path):
    model, _ = rm.load(directory, dtype="stored")
    edit = code_edit(model)
    with edit.applied(model):
        wanted = np.array(model(mx.array([[5, 6, 7]])))
    assert fuse(model, FakeTokenizer(), edit, tmp_path / "fused", source=directory) == {
        PATH.format(1): 0.0}
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert np.array_equal(np.array(fused(mx.array([[5, 6, 7]]))), wanted)
    sizes = [sum(f.stat().st_size for f in where.glob("*.safetensors"))
             for where in (directory, tmp_path / "fused")]
    assert abs(sizes[1] / sizes[0] - 1) < 1e-3
    configs = [json.loads((where / "config.json").read_text())["quantization"]
               for where in (directory, tmp_path / "fused")]
    assert configs[0] == configs[1]


def test_fuse_keeps_the_bits_from_the_shell(directory, tmp_path, capsys):
    model, _ = rm.load(directory, dtype="stored")
    float_edit(model).save(tmp_path / "edit")
    rm.second_moments(model, FakeTokenizer(), [1], "self", 640, row_length=32,
                      output=tmp_path / "moments")
    assert main(["edits", "fuse", str(tmp_path / "edit"), "--model", str(directory), "--keep-bits",
                 "--moments", str(tmp_path / "moments"), "--force",
                 "--save-path", str(tmp_path / "fused")]) == 0
    assert "of its codes changed" in capsys.readouterr().out
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    assert isinstance(Decoder(fused).module(1, "down"), nn.QuantizedLinear)


def test_edit_keeps_the_bits_from_the_shell(directory, tmp_path, capsys):
    model, _ = rm.load(directory, dtype="stored")
    rm.second_moments(model, FakeTokenizer(), [1], "self", 640, row_length=32,
                      output=tmp_path / "moments")
    arguments = ["edit", "--model", str(directory), "--prompt", REQUEST.prompt, "--subject", "cde",
                 "--target-new", "xy", "--layer", "1", "--moments", str(tmp_path / "moments"),
                 "--no-verify", "--bits", "keep"]
    measured = [one for one in arguments if one != "--no-verify"]
    main([*measured, "--neighbor", "ab efg", "--save-path", str(tmp_path / "measured")])
    assert main(["edits", "verify", str(tmp_path / "measured")]) == 0
    assert main(["edits", "card", str(tmp_path / "measured")]) == 0
    card = (tmp_path / "measured/README.md").read_text()
    assert "codes of the quantized weights" in card and "| neighbor |" in card
    assert main(arguments) == 2
    assert "--save-path" in capsys.readouterr().err
    assert main([*arguments, "--save-path", str(tmp_path / "edit")]) == 0
    assert "changed codes" in capsys.readouterr().out
    assert rm.load_edit(tmp_path / "edit").in_codes
    assert main(["edits", "show", str(tmp_path / "edit")]) == 0
    assert "%" in capsys.readouterr().out
    assert main(["edits", "fuse", str(tmp_path / "edit"), "--model", str(directory),
                 "--save-path", str(tmp_path / "fused")]) == 0
