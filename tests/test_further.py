"""Further measures of a run's edits: what they say by hand, and that they edit nothing again."""

import json

import pytest
from fakes import FakeTokenizer
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.evaluation.answers import exactly, normal, says
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.further import further_measures
from rome_mlx.evaluation.mquake import read_mquake
from rome_mlx.evaluation.probes import PROBES, ability, hops, locality, wild
from rome_mlx.evaluation.questions import read_qaedit
from rome_mlx.evaluation.run import evaluate
from rome_mlx.storage.wordings import unrelated_texts, wordings
from rome_mlx.view.compare import plot, read_run, terminal

QAEDIT = {"id": 4, "prompt": "who is ann?", "subject": "ann", "target": "a cook",
          "rephrase": "tell me who ann is", "locality": [
              {"loc": "who is bob", "loc_ans": "no one"}, {"loc": "what is x", "loc_ans": "y"}]}
CHAIN = {
    "case_id": 3, "requested_rewrite": [
        {"prompt": "{} is in", "subject": "s3", "relation_id": "P131",
         "target_new": {"str": "xy"}, "target_true": {"str": "z"}},
        {"prompt": "{} was", "subject": "xy", "relation_id": "P17",
         "target_new": {"str": "q"}, "target_true": {"str": "r"}}],
    "questions": ["where is the land of s3?", "the land of s3?"], "answer": "r",
    "answer_alias": ["rr"], "new_answer": "q", "new_answer_alias": [],
    "new_single_hops": [
        {"question": "where is s3?", "cloze": "s3 is in", "answer": "xy", "answer_alias": []},
        {"question": "where is xy?", "cloze": "xy was", "answer": "q", "answer_alias": ["qq"]}]}


def record(i, relation="P27"):
    return {"case_id": i, "requested_rewrite": {
        "prompt": "{} is in", "subject": f"s{i}", "relation_id": relation,
        "target_new": {"str": "xy"}, "target_true": {"str": "z"}},
        "paraphrase_prompts": [f"a s{i} at"], "neighborhood_prompts": ["t is in", "u is in"]}


@pytest.fixture
def written(tmp_path):
    def write(records, name="data.json"):
        (tmp_path / name).write_text(json.dumps(records))
        return tmp_path / name

    return write


@pytest.fixture
def run(tmp_path):
    """evaluate with one model, moments and templates, into a directory of its own."""
    model, tokenizer = tiny_model("llama"), FakeTokenizer()
    corpus = tmp_path / "text.txt"
    corpus.write_text("some words that are read to count keys " * 40)
    rm.second_moments(model, tokenizer, [1], str(corpus), 200, output=tmp_path / "moments")

    def run(cases, name="run", **options):
        return evaluate(model, tokenizer, cases, output=tmp_path / name, layer=1,
                        templates=["{}"], **{"moments": tmp_path / "moments",
                                             "hyperparameters": {"v_num_grad_steps": 2}, **options})

    return run


def test_answers_are_matched_word_for_word_after_normalisation():
    assert normal(" The  Eiffel-Tower, a “tower”! ") == "eiffel tower tower"
    assert says("It is in ROME, of course.", ["Rome"]) and not says("Romeo", ["Rome"])
    assert says("It is São Paulo", ["Sao Paulo"]) and normal("Ｒｏｍｅ") == "rome"
    assert says("in Paris", ["Rome", "Paris"]) and not says("", ["Rome"])
    assert not says("Paris, not Rome", ["Rome"], ["Paris"])
    assert says("Rome, not Paris", ["Rome"], ["Paris"])
    assert exactly(" The Rome.", ["rome"]) and not exactly("Rome is it", ["Rome"])
    assert not exactly("the", ["a"])  # nothing is left of either


def test_free_text_beside_teacher_forcing_by_hand():
    def answer(text, ended, forced):
        return {"prompt": "p", "text": text, "ended": ended, "forced": forced}

    now = {"answers": ["Rome"], "instead": ["Paris"],
           "rewrite": [answer("Rome. It is", False, True)],
           "paraphrase": [answer("Rome", True, True), answer("Paris or Rome", True, True)]}
    found = wild.measures(now, None)
    assert found["wild_rewrite_said"] == 100 and found["wild_rewrite_exact"] == 0
    assert found["wild_rewrite_ended"] == 0 and found["wild_rewrite_gap"] == 0
    assert found["wild_paraphrase_said"] == found["wild_paraphrase_exact"] == 50
    assert found["wild_paraphrase_gap"] == 50 and not any("chat" in name for name in found)


def test_locality_and_its_two_directions_by_hand():
    now = {"neighborhood": [{"right": r} for r in (True, False, True)]}
    before = {"neighborhood": [{"right": r} for r in (True, True, False)]}
    assert locality.measures_distractor(now, before) == pytest.approx(
        {"distractor_success": 200 / 3, "distractor_kept": 50, "distractor_gained": 100})
    assert list(locality.measures_distractor(now, None)) == ["distractor_success"]
    assert locality.measures_relations(
        {"first": [5, 2, 9], "new": [9, 9, 9]}, {"first": [5, 3, 9]}) == pytest.approx(
            {"relations_kept": 200 / 3, "relations_taken": 0})
    assert locality.measures_relations(
        {"first": [9, 9], "new": [9, 9]}, {"first": [5, 9]}) == {
            "relations_kept": 50, "relations_taken": 50}
    assert locality.measures_reversal({"target_new": 2, "target_true": 3},
                                      {"target_new": 5, "target_true": 3}) == {
        "reversal_success": 100, "reversal_gain": 3}


def test_hops_count_a_chain_that_one_question_reaches():
    def end(text, new=1, true=2):
        return {"text": text, "target_new": new, "target_true": true}

    steps = [{"text": "xy", "answers": ["xy"]}, {"text": "q", "answers": ["q"]}]
    before = {"hops": 2, "new": ["q"], "old": ["r", "rr"], "steps": steps,
              "ends": [end("in rr", 2, 1), end("who knows", 2, 1)]}
    now = {**before, "ends": [end("r or q"), end("q or r", 3, 2)]}
    assert hops.measures(now, before) == {
        "hops_said": 100, "hops_2_said": 100, "hops_old": 100, "hops_likelier": 50,
        "hops_steps": 100, "hops_steps_said": 100, "hops_known_said": 100}
    assert hops.measures(before, None)["hops_said"] == 0
    lost = {**now, "steps": [{"text": "z", "answers": ["xy"]}]}
    assert "hops_steps_said" not in hops.measures(lost, before)


def test_ability_is_of_what_was_right_before():
    now = {"right": [True, False, True], "perplexity": 12.0}
    before = {"right": [True, True, False], "perplexity": 10.0}
    assert ability.measures(now, before) == pytest.approx({
        "ability_choices": 200 / 3, "ability_perplexity": 12, "ability_perplexity_ratio": 1.2,
        "ability_kept": 50, "ability_gained": 100})
    items = ability._items()
    assert len(items) == 200 and all(len(set(choices)) == 4 for _, choices in items)


def test_every_relation_of_counterfact_has_its_wordings(shared):
    cases = read_counterfact(shared / "data/counterfact_700.json")
    for case in cases:
        assert case.question.count(case.request.subject) >= 1
    for name, wording in wordings().items():
        for text in (wording.text, wording.question, wording.denied, wording.reverse):
            assert text.count("{}") == 1
        assert wording.text not in unrelated_texts(name)


def test_a_finished_run_is_measured_on_without_editing(written, run, tmp_path, monkeypatch):
    cases = read_counterfact(written([record(i) for i in range(3)]))
    first = run(cases, measures=["distractor"])
    assert "distractor_success" in first and "distractor_success" in first["unedited"]
    assert sorted(p.name for p in (tmp_path / "run/edits").iterdir()) == ["0", "1", "2"]

    def never(*args, **kwargs):
        raise AssertionError("an edit was computed again")

    monkeypatch.setattr(rm.Edit, "save", never)  # as what is computed is
    second = run(cases, measures=["wild", "relations", "negation", "reversal", "ability"])
    for name in first:
        if isinstance(first[name], dict) and "mean" in first[name]:
            assert second[name] == first[name]
    assert second["wild_rewrite_said"]["n"] == 3 and second["relations_kept"]["n"] == 3
    assert second["ability_choices"]["n"] == 3
    assert json.loads((tmp_path / "run/summary.json").read_text())["reversal_gain"]["n"] == 3
    told = terminal([read_run(tmp_path / "run")])
    assert "free said" in told and "distract" in told
    plot([read_run(tmp_path / "run")], tmp_path / "run.png")


def test_a_damaged_measure_is_named(written, run, tmp_path):
    cases = read_counterfact(written([record(0)]))
    run(cases, measures=["negation"])
    (tmp_path / "run/negation/edit_0.json").write_text('{"cases": [3]}')
    with pytest.raises(rm.RomeError, match=r"edit_0\.json is damaged"):
        read_run(tmp_path / "run")


def test_edits_in_a_row_are_measured_together(written, run, tmp_path):
    cases = read_counterfact(written([record(i) for i in range(3)]))
    found = run(cases, sequential=2, measures=["negation", "ability"])
    assert found["negation_success"]["n"] == 3 and found["ability_choices"]["n"] == 2
    assert sorted(p.name for p in (tmp_path / "run/edits").iterdir()) == ["0", "2"]
    assert len(rm.load_edit(tmp_path / "run/edits/0").requests) == 2


def test_in_context_nothing_is_edited_and_the_fact_is_said_before(written, run, tmp_path):
    case, = read_counterfact(written([record(0)]))
    assert case.told().ask("s0 is in") == "s0 is in xy. s0 is in"
    found = run([case], method="context", measures=["wild"])
    asked = json.loads((tmp_path / "run/wild/edit_0.json").read_text())["cases"][0]
    assert asked["pre"]["rewrite"][0]["prompt"] == "s0 is in"
    assert asked["post"]["rewrite"][0]["prompt"] == "s0 is in xy. s0 is in"
    assert "kl_drift" not in found and not (tmp_path / "run/edits").exists()
    assert found["rewrite_magnitude"] != found["unedited"]["rewrite_magnitude"]


def test_qaedit_writes_the_right_answer_and_has_several_unrelated_questions(written, run):
    case, = read_qaedit(written([QAEDIT]))
    assert case.request == rm.EditRequest("who is {}?", "ann", "a cook")
    assert case.neighbors == (("who is bob", "no one"), ("what is x", "y"))
    assert case.question == "who is ann?" and case.case_id == 0  # not the id of its source
    found = run([case], measures=["wild", "distractor"])
    assert {"rewrite_acc", "neighborhood_acc", "wild_rewrite_gap", "distractor_success"} <= set(
        found)
    with pytest.raises(rm.RomeError, match="needs a relation of CounterFact"):
        run([case], measures=["negation"])
    bad = []
    assert read_qaedit(written([QAEDIT, {**QAEDIT, "subject": "nobody"}]), skipped=bad)
    assert "does not occur" in bad[0]["reason"]


def test_a_chain_of_two_edits_is_written_and_asked_to_its_end(written, run, tmp_path):
    case, = read_mquake(written([CHAIN]))
    assert [one.subject for one in case.requests] == ["s3", "xy"]
    assert case.old_answers == ("r", "rr") and case.hops[1].answers == ("q", "qq")
    found = run([case], measures=["hops"])
    assert found["rewrite_success"]["n"] == 1 and found["hops_2_said"]["n"] == 1
    assert len(rm.load_edit(tmp_path / "run/edits/3").requests) == 2
    found = run([case], name="context", method="context", measures=["hops"])
    ends = json.loads((tmp_path / "context/hops/edit_3.json").read_text())["cases"][0]["post"]
    assert ends["ends"][0]["prompt"] == ("s3 is in xy. xy was q. "
                                         "where is the land of s3?")


def test_a_measure_that_is_unknown_is_refused_before_anything_is_edited(written, run, tmp_path):
    cases = read_counterfact(written([record(0)]))
    with pytest.raises(rm.RomeError, match="choose from wild"):
        run(cases, measures=["wilder"])
    assert not (tmp_path / "run").exists()
    assert set(PROBES) == {"wild", "distractor", "relations", "negation", "reversal", "hops",
                           "ability"}


def test_our_own_chains_lead_from_their_edit_to_another_end():
    cases = read_mquake()
    assert len(cases) >= 400 and {len(case.hops) for case in cases} == {2, 3}
    for case in cases:
        assert case.request.subject in case.request.text
        assert set(case.old_answers).isdisjoint(case.new_answers)
        assert case.hops[0].answers == (case.request.target_new,)
        assert case.hops[-1].answers == case.new_answers and case.clozes
        assert not any(answer in text for answer in case.new_answers
                       for text in (*case.questions, *case.clozes) if len(answer) > 3)


def test_an_edit_that_changes_nothing_that_is_asked_has_kept_it():
    answers = {"first": [3, 4], "new": [5, 5]}
    case = {"pre": {"rewrite": 1.0}, "post": {"rewrite": 0.1},
            "measures": {"relations": {"pre": answers, "post": answers}}}
    assert further_measures(case, "post") == {"relations_kept": 100, "relations_taken": 0}
    assert further_measures(case, "pre") == {}
    assert further_measures({**case, "post": case["pre"]}, "post") == {}
