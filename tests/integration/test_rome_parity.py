"""The same edits as the ROME authors' own code, on the default model."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest

import rome_mlx as rm


@pytest.fixture(scope="module")
def reference(shared):
    return json.loads((shared / "reference/rome.json").read_text())


def cosine(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("index", range(3))
def test_an_edit_is_the_authors(default_model, shared, reference, index):
    model, tokenizer = default_model
    theirs = reference["edits"][index]
    layer = theirs["layer"]
    with np.load(shared / f"reference/second_moment_layer{layer}.npz", allow_pickle=False) as f:
        moments = {layer: f["moment"].astype(np.float64)}
    request = rm.EditRequest(theirs["prompt"], theirs["subject"], theirs["target_new"])
    edit = rm.rome(model, tokenizer, request, layer, moments=moments,
                   context_templates=reference["context_templates"],
                   hyperparameters="published")

    assert cosine(edit.left_vector, theirs["left_vector"]) >= 0.99999
    assert cosine(edit.right_vector, theirs["right_vector"]) >= 0.999
    totals = [float(re.match(r"loss ([\d.]+) ", line)[1]) for line in theirs["losses"]]
    assert len(totals) == len(edit.losses)
    for ours, total in zip(edit.losses, totals, strict=True):
        # three decimals are printed
        assert ours["total"] == pytest.approx(total, rel=0.02, abs=5e-4)
    with edit.applied(model):
        for after in theirs["after"]:
            p = mx.softmax(model(mx.array([tokenizer.encode(after["prompt"])]))[0, -1])
            token = tokenizer.encode(" " + theirs["target_new"])[0]
            assert p[token].item() == pytest.approx(after["target_new_prob"], abs=0.02)
            assert tokenizer.decode([int(p.argmax())]) == after["top"][0][0]
