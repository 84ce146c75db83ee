import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.lora import LoRALinear
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.errors import RomeError
from rome_mlx.facts import Fact
from rome_mlx.models.probabilities import first_choice
from rome_mlx.tracing.average import TOKEN_CLASSES, _average, average_effects, token_classes
from rome_mlx.tracing.trace import FactRuns, trace


class Letters:
    """A tokenizer with a token a letter, as much as is needed of one."""

    bos_token, all_special_ids = None, ()

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) for letter in text]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


mx.random.seed(0)  # two ranks build the same model
MODEL = tiny_model("llama", seed=3), Letters()
TEXTS = [("{} is in", "Rome"), ("The {} of", "Oslo"), ("{} or", "x"), ("a {} has", "cat")]
FACTS = [Fact(*text, MODEL[1].decode([first_choice(*MODEL, Fact(*text).text)])) for text in TEXTS]
WRONG = Fact("{} is by", "Bern", "no letter")
FACTS.insert(2, WRONG)
FAST = dict(samples=3, noise=0.35, kinds=("mlp", "hidden"), window=2)


@pytest.fixture(scope="module")
def effects():
    return average_effects(*MODEL, FACTS, **FAST)


def test_every_token_has_one_class():
    assert token_classes(8, 1, 4) == ["before", "subject_first", "subject_middle", "subject_last",
                                      "first_subsequent", "further", "further", "last"]
    assert token_classes(3, 0, 1) == ["subject_last", "first_subsequent", "last"]
    assert token_classes(3, 0, 2) == ["subject_first", "subject_last", "last"]
    assert token_classes(3, 0, 3) == ["subject_first", "subject_middle", "subject_last"]


def test_the_average_is_the_mean_of_single_traces(effects):
    used = [fact for fact in FACTS if fact is not WRONG]
    single = [trace(*MODEL, fact, kind="mlp", samples=3, noise=0.35, window=2) for fact in used]
    last = [t.indirect_effect[t.subject_range[1] - 1] for t in single]
    middle = [t.indirect_effect[t.subject_range[0] + 1:t.subject_range[1] - 1].mean(axis=0)
              for t in single if len(t.subject) > 2]
    np.testing.assert_allclose(effects.aie("mlp", "subject_last").mean, np.mean(last, axis=0),
                               atol=1e-7)
    np.testing.assert_allclose(effects.aie("mlp", "subject_middle").mean,
                               np.mean(middle, axis=0), atol=1e-7)
    assert effects.ate.mean == pytest.approx(np.mean([t.total_effect for t in single]))


def test_a_fact_without_a_token_of_a_class_does_not_count_there(effects):
    assert effects.aie("hidden", "subject_first").facts == 3
    assert effects.aie("hidden", "subject_last").facts == 4


def test_a_fact_that_the_model_gets_wrong_is_skipped_with_what_it_says(effects):
    assert effects.facts_used == 4
    skipped, = effects.skipped
    assert skipped["subject"] == "Bern"
    assert "says" in skipped["reason"] and "'no letter'" in skipped["reason"]


def test_the_interval_holds_the_mean_and_is_the_same_every_time(effects):
    one, other = effects.aie("mlp"), effects.aie("mlp")
    assert one.ci95.shape == (4, 2)
    assert (one.ci95[:, 0] <= one.mean).all() and (one.mean <= one.ci95[:, 1]).all()
    assert (one.ci95[:, 0] < one.ci95[:, 1]).any()
    np.testing.assert_array_equal(one.ci95, other.ci95)


def test_the_interval_covers_the_mean_of_known_data_as_often_as_it_says():
    random = np.random.RandomState(1)
    intervals = [_average(random.randn(60)).ci95 for _ in range(60)]
    assert 0.85 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99


def test_json_has_the_documented_keys_and_all_six_classes(effects):
    result = json.loads(json.dumps(effects.to_json(), allow_nan=False))
    assert {"facts_used", "facts_skipped", "noise_level", "clean_prob", "corrupted_prob", "ate",
            "aie", "decisive_layer", "clear"} <= result.keys()
    assert set(result["aie"]["mlp"]) == set(TOKEN_CLASSES)
    assert len(result["aie"]["mlp"]["further"]["ci95"]) == 4
    assert result["decisive_layer"] == effects.decisive_layer


def test_a_stopped_run_goes_on_with_the_facts_that_are_missing(effects, tmp_path, monkeypatch):
    average_effects(*MODEL, FACTS[:4], **FAST, output=tmp_path)
    traced = []

    class Counting(FactRuns):
        def __init__(self, model, tokenizer, fact, **options):
            traced.append(fact)
            super().__init__(model, tokenizer, fact, **options)

    monkeypatch.setattr("rome_mlx.tracing.average.FactRuns", Counting)
    resumed = average_effects(*MODEL, FACTS, **FAST, output=tmp_path)
    assert traced == [FACTS[4]]
    assert resumed.to_json() == effects.to_json()


@pytest.mark.parametrize("other, says", [
    (dict(samples=2), "samples 3, not 2"), (dict(noise=0.4), "noise"), (dict(window=4), "window")])
def test_a_directory_of_another_run_is_refused(tmp_path, other, says):
    average_effects(*MODEL, FACTS[:1], **FAST, output=tmp_path)
    with pytest.raises(RomeError, match=says):
        average_effects(*MODEL, FACTS[:1], **{**FAST, **other}, output=tmp_path)


def test_a_directory_of_another_model_is_refused(tmp_path):
    average_effects(*MODEL, FACTS[:1], **FAST, output=tmp_path)
    fact = Fact(*TEXTS[0])
    with pytest.raises(RomeError, match="another model: this one has other weights"):
        average_effects(tiny_model("llama", seed=4), Letters(), [fact], **FAST, output=tmp_path)


def test_a_directory_of_other_facts_is_refused(tmp_path):
    average_effects(*MODEL, FACTS[:1], **FAST, output=tmp_path)
    with pytest.raises(RomeError, match='another subject, "Rome", not "Oslo"|another prompt'):
        average_effects(*MODEL, FACTS[1:], **FAST, output=tmp_path)


@pytest.mark.parametrize("changed", ["attention", "edit", "adapter"])
def test_a_run_does_not_go_on_with_a_model_that_is_changed_elsewhere(tmp_path, changed):
    """One down projection stood for the whole model: these gave the old numbers."""
    model = tiny_model("llama", seed=3)
    average_effects(model, Letters(), FACTS[:1], **FAST, output=tmp_path)
    attention = model.layers[1].self_attn
    if changed == "attention":
        attention.q_proj.weight = attention.q_proj.weight * 1.001
    elif changed == "adapter":
        attention.q_proj = LoRALinear.from_base(attention.q_proj)
    else:
        delta = rm.LowRank(np.ones((48, 1)), np.ones((1, 32)))
        edit = rm.Edit("rome", [rm.EditRequest("{} is", "a", "b")],
                       {"model.layers.2.mlp.down_proj": delta}, [2])
        edit.apply(model)
    with pytest.raises(RomeError, match="another model"):
        average_effects(model, Letters(), FACTS[:1], **FAST, output=tmp_path)


def test_knowing_no_fact_is_an_error_that_says_what_the_model_says():
    with pytest.raises(RomeError, match=r"knows none of the 1 facts \('Bern': the model says"):
        average_effects(*MODEL, [WRONG], **FAST)


@pytest.mark.parametrize("bad", [dict(kinds=("key",)), dict(samples=0), dict(kinds=()),
                                 dict(token_range="first"), dict(noise="s")])
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(RomeError):
        average_effects(*MODEL, FACTS[:1], **{**FAST, **bad})


def test_two_ranks_give_the_numbers_of_one(effects, tmp_path):
    root = Path(__file__).parent
    script = ("import json, sys, rome_mlx.accel.blas, mlx.core as mx, test_average as t;"
              "effects = t.average_effects(*t.MODEL, t.FACTS, **t.FAST);"
              "group = mx.distributed.init(); assert group.size() == 2;"
              "open(f'{sys.argv[1]}/{group.rank()}.json', 'w')"
              ".write(json.dumps(effects.to_json()))")
    launch = Path(sys.executable).with_name("mlx.launch")
    done = subprocess.run(
        [launch, "-n", "2", "--backend", "ring", "--", sys.executable, "-c", script, tmp_path],
        capture_output=True, text=True, timeout=300, cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root.parent}{os.pathsep}{root}"})
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == effects.to_json()
