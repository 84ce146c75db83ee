"""CounterFact: the measures are the authors', a run can be killed, a bad record is named."""

import json

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.evaluation import questions
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.metrics import SCORE, case_measures, target_scores
from rome_mlx.evaluation.run import evaluate
from rome_mlx.evaluation.summary import ceiling_share, differences, summarize, summary_of

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
    assert measures["rewrite_magnitude"] == pytest.approx(100 * (np.exp(-0.1) - np.exp(-4)))
    assert "paraphrase_success" not in measures


def neighbors(*prompts):
    """Scores of neighbors, each (whether the true answer beats the new, is the first choice)."""
    return {"rewrite": [], "paraphrase": [], "neighborhood": [
        {"target_true": 1.0, "target_new": 2.0 if won else 0.5, "correct": first}
        for won, first in prompts]}


def test_neighbors_are_counted_by_what_they_were_before():
    before = neighbors((True, True), (True, False), (True, False), (False, False), (False, False))
    after = neighbors((True, False), (True, False), (False, False), (True, False), (False, False))
    measures = case_measures(after, before)
    assert measures["neighborhood_kept"] == pytest.approx(200 / 3)  # of the three that had won
    assert measures["neighborhood_gained"] == 50  # of the two that had not
    assert measures["neighborhood_known_success"] == 100  # the one known neighbor still wins
    assert measures["neighborhood_known_acc"] == 0  # but is no longer the first choice
    share = 3 / 5  # NS is made of both: kept where it was, gained elsewhere
    assert measures["neighborhood_success"] == pytest.approx(
        share * measures["neighborhood_kept"] + (1 - share) * measures["neighborhood_gained"])
    assert "neighborhood_known_success" not in case_measures(
        neighbors((True, False)), neighbors((True, False)))


def test_the_score_is_the_harmonic_mean_and_intervals_hold_the_mean():
    random = np.random.RandomState(0)
    cases = [{"rewrite_success": 100.0, "paraphrase_success": float(random.choice([0, 50, 100])),
              "neighborhood_success": float(10 * random.randint(11))} for _ in range(50)]
    out = summarize(cases)
    parts = [np.mean([c[f"{n}_success"] for c in cases]) for n in NAMES]
    assert out["score"]["mean"] == pytest.approx(3 / sum(1 / p for p in parts))
    for measure in out.values():
        assert measure["ci95"][0] <= measure["mean"] <= measure["ci95"][1] and measure["n"] == 50
    assert summarize(cases) == out
    perfect = {**out, "score": {"mean": 3 / (0.01 + 0.01 + 1 / parts[2])}}
    assert ceiling_share(perfect, out) == pytest.approx(100)


def test_an_edit_that_raises_neighbors_has_more_than_the_unedited_models_share():
    edited, unedited = {"score": {"mean": 100.0}}, {"neighborhood_success": {"mean": 50.0}}
    assert ceiling_share(edited, unedited) == pytest.approx(100 * 100 / 75)


def test_every_measure_has_the_number_of_its_own_cases():
    cases = [{"rewrite_success": 100.0, "kl_drift": 0.1 * i} for i in range(6)]
    for i, case in enumerate(cases[:4]):
        case["ngram_entropy"] = 600.0 + i
    out = summarize(cases)
    assert {name: measure["n"] for name, measure in out.items()} == {
        "rewrite_success": 6, "kl_drift": 6, "ngram_entropy": 4}
    assert out["ngram_entropy"]["mean"] == 601.5


def test_cases_that_share_an_edited_model_are_no_evidence_of_their_own():
    random = np.random.RandomState(0)
    drift = random.rand(10)
    cases = [{"rewrite_success": 100.0, "paraphrase_success": 50.0,
              "neighborhood_success": 10.0 * random.randint(11), "kl_drift": float(drift[i // 10])}
             for i in range(100)]
    groups = [i // 10 for i in range(100)]
    width = {name: [high - low for low, high in (summarize(cases, groups=g)[name]["ci95"]
                                                 for g in (None, groups))]
             for name in ("kl_drift", "rewrite_success")}
    assert width["kl_drift"][1] > 2.5 * width["kl_drift"][0]  # √10 in theory
    ends = np.percentile(np.random.RandomState(1).choice(drift, (20000, 10)).mean(1), [2.5, 97.5])
    assert summarize(cases, groups=groups)["kl_drift"]["ci95"] == pytest.approx(ends, abs=0.01)
    assert width["rewrite_success"][1] > 5 * width["rewrite_success"][0]  # ten models, not 100


def test_one_edited_model_has_no_interval():
    cases = [{f"{name}_success": 50.0 + i for name in NAMES} | {"kl_drift": 0.1} for i in range(5)]
    out = summarize(cases, groups=[3] * 5)
    assert all(measure["ci95"] is None and measure["n"] == 5 for measure in out.values())
    results = [{"case_id": i, "group": [0, 1, 2], "pre": {"rewrite": [0.0]},
                "post": {"rewrite": [1.0]}} for i in range(3)]
    summary = summary_of(results, {}, questions)
    assert summary["groups"] == 1 and summary["rewrite_acc"]["ci95"] is None
    assert summary["unedited"]["rewrite_acc"]["ci95"][1] > 50  # its cases share no edit


def test_no_share_has_an_interval_without_a_width():
    for value in (0.0, 100.0, 50.0):
        cases = [{f"{name}_success": value for name in NAMES} for _ in range(20)]
        for measure in summarize(cases).values():
            low, high = measure["ci95"]
            assert low <= value <= high and high - low > 10


def test_paired_differences_know_what_two_separate_intervals_do_not():
    random = np.random.RandomState(0)
    base = [{f"{name}_success": 10.0 * random.randint(4, 9) for name in NAMES} for _ in range(60)]
    other = [{name: value + random.choice([0.0, 0.0, 10.0]) for name, value in case.items()}
             for case in base]
    one, two = summarize(base), summarize(other)
    found = differences(base, other, SCORE, range(60), range(60))
    for name in ("neighborhood_success", "score"):
        assert found[name]["mean"] == pytest.approx(two[name]["mean"] - one[name]["mean"])
        assert found[name]["n"] == 60 and found[name]["ci95"][0] > 0
        assert two[name]["ci95"][0] < one[name]["ci95"][1]  # apart they overlap
    mirrored = differences(other, base, SCORE, range(60), range(60))["score"]["ci95"]
    assert mirrored == pytest.approx([-end for end in found["score"]["ci95"][::-1]], abs=0.2)
    tied = differences(base, base, SCORE, range(60), range(60))["score"]
    assert tied["mean"] == 0 and tied["ci95"][0] < 0 < tied["ci95"][1]
    assert differences(base, other, SCORE, range(60), [0] * 60)["score"]["ci95"] is None


def test_a_pair_counts_where_both_runs_have_the_measure():
    base = [{"rewrite_success": 0.0, "ngram_entropy": 600.0 + i} for i in range(3)]
    other = [{"rewrite_success": 100.0} for _ in range(3)]
    other[1]["ngram_entropy"] = 611.0
    found = differences(base, other, SCORE, range(3), range(3))
    assert found["ngram_entropy"] == {"mean": 10.0, "ci95": None, "n": 1}
    assert found["rewrite_success"]["n"] == 3 and "score" not in found


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
    for file in (tmp_path / "whole").glob("*.json"):
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
