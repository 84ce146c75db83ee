"""CounterFact: the measures are the authors', a run can be killed, a bad record is named."""

import json

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.metrics import case_measures, target_scores
from rome_mlx.evaluation.run import evaluate
from rome_mlx.evaluation.summary import ceiling_share, summarize

NAMES = ("rewrite", "paraphrase", "neighborhood")


def record(i, **changes):
    rewrite = {"prompt": "{} is in", "subject": f"s{i}", "relation_id": f"P{i % 2}",
               "target_new": {"str": "xy"}, "target_true": {"str": "z"}}
    return {"case_id": i, "requested_rewrite": {**rewrite, **changes},
            "paraphrase_prompts": [f"a s{i} at"], "neighborhood_prompts": ["t is in", "u is in"]}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record(i) for i in range(6)]))
    return path


def test_scores_are_the_whole_models_a_row_at_a_time():
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    pairs = [("ab c", "xy"), ("a much longer prompt", "q"), ("ab", "three words here")]
    pairs += [("ab c", "q"), ("ab c", "xylophone"), ("ab c x", "y")]  # one begins another
    for (prompt, target), (nll, right) in zip(pairs, target_scores(model, tokenizer, pairs),
                                              strict=True):
        ids = tokenizer.encode(prompt + " " + target)
        logits = np.array(model(mx.array([ids]))[0], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        begin = len(ids) - len(target)
        expected = [-log_p[t - 1, ids[t]] for t in range(begin, len(ids))]
        assert nll == pytest.approx(np.mean(expected), abs=1e-4)
        assert right == np.mean([logits[t - 1].argmax() == ids[t]
                                 for t in range(begin, len(ids))])


def test_the_measures_of_a_case_by_hand():
    before = {"rewrite": [{"target_new": 3.0, "target_true": 1.0, "correct": False}],
              "paraphrase": [], "neighborhood": [
                  {"target_new": 3.0, "target_true": 1.0, "correct": True},
                  {"target_new": 1.0, "target_true": 2.0, "correct": False}]}
    after = {**before, "rewrite": [{"target_new": 0.1, "target_true": 4.0, "correct": True}],
             "neighborhood": [{"target_new": 0.5, "target_true": 1.0, "correct": False},
                              {"target_new": 2.0, "target_true": 1.0, "correct": True}]}
    measures = case_measures(after, before)
    assert measures["rewrite_success"] == 100 and measures["neighborhood_success"] == 50
    assert measures["neighborhood_known_success"] == 0  # only the first was known, and it is lost
    assert measures["rewrite_magnitude"] == pytest.approx(100 * (np.exp(-0.1) - np.exp(-4)))
    assert "paraphrase_success" not in measures


def test_the_score_is_the_harmonic_mean_and_intervals_hold_the_mean():
    random = np.random.RandomState(0)
    cases = [{"rewrite_success": 100.0, "paraphrase_success": float(random.choice([0, 50, 100])),
              "neighborhood_success": float(10 * random.randint(11))} for _ in range(50)]
    out = summarize(cases)
    parts = [np.mean([c[f"{n}_success"] for c in cases]) for n in NAMES]
    assert out["score"]["mean"] == pytest.approx(3 / sum(1 / p for p in parts))
    for measure in out.values():
        assert measure["ci95"][0] <= measure["mean"] <= measure["ci95"][1]
    assert summarize(cases) == out
    perfect = {**out, "score": {"mean": 3 / (0.01 + 0.01 + 1 / parts[2])}}
    assert ceiling_share(perfect, out) == pytest.approx(100)


def test_a_run_that_was_stopped_ends_like_an_unbroken_one(data, tmp_path, monkeypatch):
    model, cases = tiny_model("llama"), read_counterfact(data)
    width = model.layers[1].mlp.down_proj.weight.shape[1]
    options = dict(layer=1, moments={1: np.eye(width)}, templates=["{}", "q. {}"])
    whole = evaluate(model, FakeTokenizer(), cases, output=tmp_path / "whole", **options)

    calls, real = [], rm.Edit.apply

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(rm.Edit, "apply", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, FakeTokenizer(), cases, output=tmp_path / "broken", **options)
    assert len(list((tmp_path / "broken").glob("case_*.json"))) == 2
    resumed = evaluate(model, FakeTokenizer(), cases, output=tmp_path / "broken", **options)
    assert len(calls) == 3 + 4  # the two finished cases were not computed again
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "broken" / file.name).read_bytes()


def test_other_settings_in_the_same_directory_are_refused(data, tmp_path):
    model, cases = tiny_model("llama"), read_counterfact(data, limit=1)
    options = dict(output=tmp_path / "run", method="none")
    evaluate(model, FakeTokenizer(), cases, layer=1, **options)
    with pytest.raises(rm.RomeError, match=r"other settings \(layers 1, not 2\)"):
        evaluate(model, FakeTokenizer(), cases, layer=2, **options)
    with pytest.raises(rm.RomeError, match="a run of another model: this one has other weights"):
        evaluate(tiny_model("llama", seed=1), FakeTokenizer(), cases, layer=1, **options)


def _another_record(case):
    case["request"]["subject"] = "someone else"


def _another_group(case):
    case["group"] = [0, 1]


def _without_scores(case):
    del case["post"]["rewrite"]


@pytest.mark.parametrize("change, said", [
    (_another_record, "is of another request, .*; choose a new --output"),
    (_another_group, r"is of another group, \[0, 1\], not \[0\]"),
    (_without_scores, "is damaged .*; remove it and run again"), (None, "is damaged")])
def test_a_case_file_that_is_not_this_runs_is_refused(change, said, data, tmp_path):
    model, cases = tiny_model("llama"), read_counterfact(data, limit=2)
    options = dict(output=tmp_path / "run", method="none")
    evaluate(model, FakeTokenizer(), cases, **options)
    path = tmp_path / "run/case_0.json"
    case = json.loads(path.read_text())
    if change is None:
        path.write_text("{")
    else:
        change(case)
        path.write_text(json.dumps(case))
    before = path.read_bytes()
    with pytest.raises(rm.RomeError, match=rf"case_0\.json {said}"):
        evaluate(model, FakeTokenizer(), cases, **options)
    assert path.read_bytes() == before


def test_a_place_that_is_not_a_runs_is_refused(data, tmp_path):
    model, cases = tiny_model("llama"), read_counterfact(data, limit=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    for place, said in (("other", "holds other files"), ("data.json", "is not a directory")):
        with pytest.raises(rm.RomeError, match=said):
            evaluate(model, FakeTokenizer(), cases, output=tmp_path / place, method="none")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["notes.txt"]
