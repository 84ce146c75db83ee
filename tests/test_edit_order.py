"""Edits put on, taken off and stacked in any order: what is left depends on nothing else."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.lowrank import LowRank, dense
from rome_mlx.models.applied import edits_of
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import fingerprint

REQUEST = rm.EditRequest("ab {} lives in", "cde", "xy")
EDITS = 50
TOKENS = mx.array([[1, 2, 3, 4]])


def new_model(kind):
    model = tiny_model("llama", intermediate_size=64)
    if kind == "bfloat16":
        model.set_dtype(mx.bfloat16)
    if kind == "4-bit":
        nn.quantize(model, group_size=32, bits=4)
    return model


def arrays(model):
    return {k: np.array(v.astype(mx.float32) if v.dtype == mx.bfloat16 else v)
            for k, v in tree_flatten(model.parameters())}


def assert_same_arrays(before, after):
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def edits_of_all_kinds(model) -> list:
    """50 edits: of one weight and of three, of rank one, of higher ones, and dense."""
    decoder, edits = Decoder(model), []
    prints = {layer: fingerprint(decoder.module(layer, "down")) for layer in range(4)}
    for seed in range(EDITS):
        random = np.random.RandomState(seed)
        layers = sorted(random.choice(4, 3 if seed % 5 == 0 else 1, replace=False).tolist())
        rank = (1, 1, 1, 4, 0)[seed % 5]
        deltas = {decoder.path(layer, "down"): (
            LowRank(random.randn(64, rank), random.randn(rank, 32)) if rank
            else dense(random.randn(64, 32))) for layer in layers}
        edits.append(rm.Edit("rome", [REQUEST], deltas, layers, fingerprints={
            decoder.path(layer, "down"): prints[layer] for layer in layers}))
    return edits


MODELS = {kind: new_model(kind) for kind in ("float32", "bfloat16", "4-bit")}
ALL = {kind: edits_of_all_kinds(model) for kind, model in MODELS.items()}


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(EDITS)), coins=st.randoms(use_true_random=False))
def test_edits_and_stacks_in_any_order_leave_every_array_bit_for_bit(kind, order, coins):
    model, edits = MODELS[kind], list(ALL[kind])
    before, on = arrays(model), []
    for i in order:
        if coins.random() < 0.2:
            edits[i] = rm.stack([edits[i], edits[coins.randrange(EDITS)]])
        edits[i].apply(model)
        on.append(edits[i])
        while on and coins.random() < 0.4:
            on.pop(coins.randrange(len(on))).revert(model)
    coins.shuffle(on)
    kept, gone = on[:3], on[3:]
    for edit in gone:
        edit.revert(model)
    remaining = edits_of(model)
    assert {id(edit) for edit in remaining} == {id(edit) for edit in kept}
    now = arrays(model)
    for edit in kept:
        edit.revert(model)
    assert_same_arrays(before, arrays(model))
    for edit in remaining:  # only these, and never any other
        edit.apply(model)
    assert_same_arrays(now, arrays(model))
    for edit in kept:
        edit.revert(model)
    assert_same_arrays(before, arrays(model))


@pytest.mark.parametrize("kind", ["float32", "4-bit"])
def test_a_stack_is_bit_for_bit_its_edits_one_after_the_other(kind):
    model, edits = MODELS[kind], [e for e in ALL[kind] if len(e.deltas) == 1][:4]
    for edit in edits:
        edit.apply(model)
    together = arrays(model)
    for edit in edits:
        edit.revert(model)
    with rm.stack(edits).applied(model):
        assert_same_arrays(together, arrays(model))


def test_one_edit_changes_the_float_and_the_4_bit_copy_alike():
    """The 4-bit model's float copy: the same function before, and after the edit."""
    from rome_mlx.models.weights import cast

    packed, copy = new_model("4-bit"), cast(new_model("4-bit"), mx.float32)
    edits = edits_of_all_kinds(packed)[:6]
    plain = np.array(packed(TOKENS))
    for edit in edits:
        edit.apply(packed)
        edit.apply(copy)
    assert np.abs(np.array(packed(TOKENS)) - plain).max() > 0.1
    np.testing.assert_allclose(np.array(packed(TOKENS)), np.array(copy(TOKENS)), atol=2e-3)


def test_edits_on_the_default_model_leave_every_array_bit_for_bit(
        default_model, default_model_4bit):
    for model, _ in (default_model, default_model_4bit):
        decoder = Decoder(model)
        before, edits = arrays(model), []
        for seed, layer in enumerate((4, 8, 8, 12)):
            random, path = np.random.RandomState(seed), decoder.path(layer, "down")
            edits.append(rm.Edit("rome", [REQUEST], {path: LowRank(
                random.randn(1536, 1), random.randn(1, 576))}, [layer],
                fingerprints={path: fingerprint(decoder.module(layer, "down"))}))
        for edit in edits:
            edit.apply(model)
        edits[1].revert(model)
        edits[1].apply(model)
        for i in (2, 0, 3, 1):
            edits[i].revert(model)
        assert_same_arrays(before, arrays(model))
