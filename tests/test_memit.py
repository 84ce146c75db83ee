"""MEMIT, EMMET and AlphaEdit against their formulas, and their promises on tiny models."""

import dataclasses
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from samples import EXACT, arrays, spd
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.key import in_contexts, read_keys, read_states
from rome_mlx.editing.least_squares import LeastSquares
from rome_mlx.editing.methods.alphaedit import ALPHAEDIT, null_space
from rome_mlx.editing.methods.emmet import equality_update
from rome_mlx.editing.methods.rome import inverse_direction, rank_one_update
from rome_mlx.editing.spread import request_keys
from rome_mlx.editing.templates import memit_templates
from rome_mlx.editing.value import optimize_values
from rome_mlx.models.decoder import Decoder
from rome_mlx.view.story import Story

REQUESTS = [rm.EditRequest("ab {} lives in", "cde", "xy"),
            rm.EditRequest("{} was", "a long subject", "b"),
            rm.EditRequest("the home of {} is", "f", "qr")]
TEMPLATES = ["{}", "q r s. {}", "tu. {}"]
METHODS = [rm.memit, rm.emmet, rm.alphaedit]
STEPS = {"v_num_grad_steps": 5}
FREE = {"memit": {"update_weight": 1e-6}, "emmet": {"ridge": 0.0, "moment_scale": 1.0},
        "alphaedit": {"threshold": 1e9, "regularization": 1e-6}}  # nothing but the constraint


def edited(model, method, requests=REQUESTS, layers=(0, 1, 2), hyperparameters=None, **options):
    if hyperparameters is None:
        hyperparameters = STEPS | ({"energy": 0.1} if method is rm.alphaedit else {})
    wide = Decoder(model).module(0, "down").weight.shape[1]
    wide = 64 if model.layers[0].mlp.down_proj.__class__ is nn.QuantizedLinear else wide
    return method(model, FakeTokenizer(), requests, list(layers),
                  moments={layer: spd(wide, layer) for layer in layers},
                  context_templates=TEMPLATES, hyperparameters=hyperparameters, **options)


def bare(requests=REQUESTS):
    return [(r.text, r.subject_span) for r in requests]


def test_memits_update_minimises_its_cost(system):
    matrix, keys, residual = system
    best = residual @ LeastSquares(3.0 * matrix).update(keys).T

    def cost(update):
        return (np.sum((update @ keys - residual)**2)
                + 3.0 * np.trace(update @ matrix @ update.T))

    random = np.random.RandomState(1)
    for _ in range(20):
        other = 1e-3 * random.randn(*best.shape)
        assert cost(best + other) > cost(best)
        # stationary: both sides rise alike
        assert cost(best + other) == pytest.approx(cost(best - other), rel=1e-9)
    np.testing.assert_allclose(
        best, residual @ keys.T @ np.linalg.inv(3.0 * matrix + keys @ keys.T), rtol=1e-8)


def test_emmets_update_holds_every_constraint_and_is_the_smallest(system):
    matrix, keys, residual = system
    best = residual @ equality_update(keys, matrix).T
    np.testing.assert_allclose(best @ keys, residual, atol=1e-10)
    free = np.eye(12) - keys @ np.linalg.pinv(keys)  # changes that keep the constraints
    random = np.random.RandomState(1)
    for _ in range(20):
        other = best + 0.1 * random.randn(5, 12) @ free
        assert np.trace(other @ matrix @ other.T) > np.trace(best @ matrix @ best.T)


def test_emmets_ridge_is_on_the_keys_gram_matrix(system):
    matrix, keys, residual = system
    inverse = np.linalg.inv(matrix)
    gram = keys.T @ inverse @ keys + 0.1 * np.eye(4)
    np.testing.assert_allclose(residual @ equality_update(keys, matrix, 0.1).T,
                               residual @ np.linalg.inv(gram) @ keys.T @ inverse, rtol=1e-8)


def test_emmet_of_one_request_is_romes_update(system):
    matrix, keys, residual = system
    key, missing = keys[:, 0], residual[:, 0]
    right, left = rank_one_update(key, inverse_direction(matrix, key), missing, 0 * missing)
    np.testing.assert_allclose(residual[:, :1] @ equality_update(keys[:, :1], matrix).T,
                               np.outer(right, left), rtol=1e-9)


def test_alphaedits_update_solves_its_equation_and_spares_the_known(system):
    matrix, keys, residual = system
    values, vectors = np.linalg.eigh(matrix)
    threshold, earlier = float(values[2]), np.random.RandomState(3).randn(12, 2)
    basis, _ = null_space(matrix, 0.01, threshold)
    equations = LeastSquares(0.7 * np.eye(basis.shape[1]), basis)
    alone = residual @ equations.update(keys).T
    equations.protect(earlier)
    update = residual @ equations.update(keys).T
    p = basis @ basis.T
    x = np.linalg.solve(p @ (keys @ keys.T + earlier @ earlier.T) + 0.7 * np.eye(12),
                        p @ keys @ residual.T)
    np.testing.assert_allclose(update, x.T, atol=1e-10)
    np.testing.assert_allclose(update @ vectors[:, values >= threshold], 0, atol=1e-12)
    assert np.linalg.norm(update @ earlier) < np.linalg.norm(alone @ earlier)


def test_a_threshold_below_every_eigenvalue_says_their_range():
    with pytest.raises(rm.RomeError, match=r"from 2 to 3.*threshold"):
        null_space(np.diag([2.0, 3.0]), 0.01, 0.02)


def test_the_null_space_holds_at_most_the_energy_asked_for():
    matrix = np.diag([4.0, 1.0, 0.5, 94.5])
    for energy, directions, held in ((0.01, [2], 0.005), (0.0149, [2], 0.005),
                                     (0.0151, [1, 2], 0.015), (0.06, [0, 1, 2], 0.055)):
        basis, share = null_space(matrix, energy)
        assert share == pytest.approx(held) and basis.shape == (4, len(directions))
        np.testing.assert_allclose(basis @ basis.T, np.diag(np.isin(range(4), directions)),
                                   atol=1e-12)
    with pytest.raises(rm.RomeError, match=r"use least holds 0\.5 %.*may hold 0\.1 %.*energy"):
        null_space(matrix, 0.001)


def test_a_null_space_that_keys_use_is_refused_with_the_numbers():
    matrix = np.diag([4.0, 1.0, 0.5, 94.5]) + 10 * np.eye(4)
    with pytest.raises(rm.RomeError, match=r"3 of 4 directions with 25\.4 % .*at most 10 %.*0\.01"):
        null_space(matrix, 0.01, 20.0)
    with pytest.raises(rm.RomeError, match="are allowed"):
        null_space(matrix, 0.5)


def test_an_edit_says_how_large_its_null_space_was(tmp_path, capsys):
    edit = edited(tiny_model("llama"), rm.alphaedit)
    spaces = edit.details["null_space"]
    assert [space["layer"] for space in spaces] == [0, 1, 2]
    for space in spaces:
        shares = np.cumsum(np.linalg.eigvalsh(spd(48, space["layer"])))
        shares /= shares[-1]
        assert space["of"] == 48 and space["directions"] == (shares <= 0.1).sum() > 1
        assert space["energy"] == pytest.approx(shares[space["directions"] - 1])
    edit.save(tmp_path / "edit")
    assert rm.load_edit(tmp_path / "edit").details == edit.details
    Story(REQUESTS[0], 5).tell("edit", {"edit": edit})
    said = " ".join(capsys.readouterr().out.split())
    assert f"Null space at layers 0, 1, 2: {spaces[0]['directions']}, " in said
    assert "of 48 directions, " in said and "C of layers 0, 1, 2: given." in said


def test_an_edit_saved_without_details_is_loaded(tmp_path):
    edited(tiny_model("llama"), rm.memit).save(tmp_path / "edit")
    path = tmp_path / "edit/edit.json"
    about = json.loads(path.read_text())
    del about["details"]
    path.write_text(json.dumps(about))
    assert rm.load_edit(tmp_path / "edit").details == {}


def test_published_thresholds_are_kept_by_name_and_other_models_go_by_energy():
    for name in ("gpt2-xl", "gpt-j", "llama-3-8b"):
        assert ALPHAEDIT.resolve(name).threshold == 0.02
    assert ALPHAEDIT.resolve("published", Decoder(tiny_model("llama"))).threshold == 0.02
    own = ALPHAEDIT.resolve(None, Decoder(tiny_model("llama")))
    assert own.threshold is None and (own.energy, own.regularization) == (0.05, 0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", ["float", "4-bit"])
def test_computing_leaves_the_model_bit_for_bit_and_applying_changes_it(method, bits):
    model = tiny_model("llama", intermediate_size=64)
    if bits == "4-bit":
        nn.quantize(model, group_size=32, bits=4)
    before, tokens = arrays(model), mx.array([[1, 2, 3]])
    plain = np.array(model(tokens))
    edit = edited(model, method)
    with edit.applied(model):
        assert np.abs(np.array(model(tokens)) - plain).max() > 1e-4
    after = arrays(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len(edit.deltas) == 3 and all(d.rank == 3 for d in edit.deltas.values())


def test_an_error_on_the_way_takes_the_partial_updates_back(monkeypatch):
    model, layers = tiny_model("llama"), []

    def stop(*args):
        layers.append(args[-1])
        if len(layers) == 3:
            raise ZeroDivisionError
        return request_keys(*args)

    monkeypatch.setattr("rome_mlx.editing.spread.request_keys", stop)
    before = arrays(model)
    with pytest.raises(ZeroDivisionError):
        edited(model, rm.memit)
    after = arrays(model)
    assert layers == [0, 1, 2]
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("method", METHODS)
def test_without_regularisation_the_edited_model_computes_the_values(kind, method, monkeypatch):
    monkeypatch.setattr("rome_mlx.editing.methods.alphaedit._MOST_ENERGY", 2.0)
    model = tiny_model(kind)
    decoder = Decoder(model)
    hp = STEPS | FREE[method.__name__]
    # one context: the keys of the bare prompts are the keys written at
    options = dict(moments={i: spd(decoder.module(i, "down").weight.shape[1]) for i in (0, 1, 2)},
                   context_templates=["{}"], hyperparameters=hp)
    edit = method(model, FakeTokenizer(), REQUESTS, [0, 1, 2], **options)
    values = optimize_values(decoder, FakeTokenizer(), REQUESTS, ["{}"], 2, edit.hyperparameters,
                             "hidden")
    with edit.applied(model):
        states = read_states(decoder, FakeTokenizer(), bare(), 2)
    np.testing.assert_allclose(states, [v.initial + v.delta for v in values], atol=2e-3)


def test_the_bare_prompts_key_weighs_as_much_as_all_others():
    decoder, tokenizer = Decoder(tiny_model("llama")), FakeTokenizer()
    rows = read_keys(decoder, tokenizer, in_contexts(REQUESTS[0], TEMPLATES), 1).keys
    found = request_keys(decoder, tokenizer, REQUESTS, TEMPLATES, 1)
    np.testing.assert_allclose(found[0], rows[0] / 2 + rows[1] / 4 + rows[2] / 4, atol=1e-6)


def test_memits_contexts_are_the_bare_one_and_five_that_begin_with_common_words():
    templates = memit_templates(tiny_model("llama"), FakeTokenizer(), seed=3)
    assert templates[0] == "{}" and len(templates) == 6
    assert all(t.endswith(". {}") for t in templates[1:])
    for word, template in zip(("The", "Therefore", "Because", "I", "You"), templates[1:],
                              strict=True):
        assert template.replace(" ", "").startswith(word)
    assert templates == memit_templates(tiny_model("llama"), FakeTokenizer(), seed=3)


def test_alphaedit_protects_the_keys_of_edits_applied_or_loaded(tmp_path):
    model = tiny_model("llama")
    first = edited(model, rm.alphaedit, REQUESTS[:1])
    first.save(tmp_path / "first")
    loaded = rm.load_edit(tmp_path / "first")
    assert loaded.keys.keys() == first.keys.keys()
    for path, keys in first.keys.items():
        np.testing.assert_array_equal(loaded.keys[path], keys)
    assert loaded.hyperparameters == first.hyperparameters

    with first.applied(model):
        known = edited(model, rm.alphaedit, REQUESTS[1:])
        again = edited(model, rm.alphaedit, REQUESTS[1:], earlier=[first, loaded])
    stranger = dataclasses.replace(first, keys={})  # as if the adapter came with the model
    with stranger.applied(model):
        named = edited(model, rm.alphaedit, REQUESTS[1:], earlier=[loaded])
        forgotten = edited(model, rm.alphaedit, REQUESTS[1:])
    for path in known.deltas:
        def update(edit, path=path):
            return edit.deltas[path].a @ edit.deltas[path].b

        for other in (named, again):
            np.testing.assert_allclose(update(other), update(known), atol=1e-9 if EXACT else 1e-6)
        key = first.keys[path][:, 0]
        assert np.linalg.norm(update(known).T @ key) < np.linalg.norm(update(forgotten).T @ key)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_anchored_values_are_as_long_as_the_unedited_models(share):
    model = tiny_model("llama")
    change = rm.Edit("rome", REQUESTS, {"model.layers.1.mlp.down_proj": rm.LowRank(
        0.3 * np.random.RandomState(0).randn(48, 2), np.random.RandomState(1).randn(2, 32))}, [1])
    free = dict(STEPS, update_weight=1e-6)
    decoder = Decoder(model)
    plain = read_states(decoder, FakeTokenizer(), bare(), 2)
    with change.applied(model):
        goals = {}
        for anchor in (0.0, share):
            edit = edited(model, rm.memit, hyperparameters=free | {"anchor": anchor})
            with edit.applied(model):
                goals[anchor] = read_states(decoder, FakeTokenizer(), bare(), 2)
    lengths = {name: np.linalg.norm(x, axis=1) for name, x in goals.items()}
    wanted = np.linalg.norm(plain, axis=1)**share * lengths[0.0]**(1 - share)
    np.testing.assert_allclose(lengths[share], wanted, rtol=0.02)
    assert np.abs(lengths[0.0] / wanted - 1).max() > 0.1


def test_a_stack_keeps_the_keys_of_all():
    model = tiny_model("llama")
    edits = [edited(model, rm.alphaedit, REQUESTS[:1]), edited(model, rm.memit, REQUESTS[1:])]
    stack = rm.stack(edits)
    assert all(keys.shape[1] == 3 for keys in stack.keys.values())
    assert stack.method == "stack" and stack.hyperparameters is None


def test_more_requests_than_the_weight_is_wide_cost_no_more_than_the_weight(tmp_path):
    model = tiny_model("llama")
    many = [rm.EditRequest("the home of {} is", f"s{i}", "b") for i in range(40)]
    edit = edited(model, rm.memit, many, layers=[1], hyperparameters={"v_num_grad_steps": 2})
    delta, = edit.deltas.values()
    assert delta.rank == 32 and edit.keys["model.layers.1.mlp.down_proj"].shape == (48, 40)


def test_requests_are_one_or_many_and_repetitions_count_once():
    model = tiny_model("llama")
    one = edited(model, rm.memit, REQUESTS[0])
    many = edited(model, rm.memit, [REQUESTS[0], REQUESTS[0]])
    assert one.requests == many.requests == [REQUESTS[0]]
    for path in one.deltas:
        np.testing.assert_array_equal(one.deltas[path].b, many.deltas[path].b)


@pytest.mark.parametrize("method", METHODS)
def test_conflicting_requests_are_refused_by_name(method):
    other = dataclasses.replace(REQUESTS[0], target_new="zw")
    with pytest.raises(rm.RomeError, match=r"ab cde lives in.*'xy'.*'zw'"):
        edited(tiny_model("llama"), method, [*REQUESTS, other])
    with pytest.raises(rm.RomeError, match="no request"):
        edited(tiny_model("llama"), method, [])


@pytest.mark.parametrize("method", METHODS)
def test_layers_and_moments_that_do_not_fit_are_refused(method):
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    with pytest.raises(rm.RomeError, match="rising"):
        method(model, tokenizer, REQUESTS, [2, 1], moments={})
    with pytest.raises(rm.RomeError, match="0 to 3"):
        method(model, tokenizer, REQUESTS, moments={}, hyperparameters={"layers": [3, 4]})
    with pytest.raises(rm.RomeError, match="rome-mlx moments"):
        method(model, tokenizer, REQUESTS, [1, 2], moments={1: spd(48)})


@pytest.mark.parametrize("bad", [{"layers": []}, {"layers": [2, 1]}, {"v_lr": 0},
                                 {"v_num_grad_steps": 0}, {"v_num_grad_steps": 1.5},
                                 {"clamp_norm_factor": "big"}, {"unknown": 1}, "gpt-5", 3])
def test_bad_hyperparameters_are_refused(bad):
    with pytest.raises(rm.RomeError):
        edited(tiny_model("llama"), rm.memit, hyperparameters=bad)


def test_presets_have_names():
    model = tiny_model("llama")
    edit = edited(model, rm.memit, hyperparameters="gpt-j")
    assert edit.hyperparameters.update_weight == 15000
    assert edit.hyperparameters.layers is None  # those are GPT-J's
