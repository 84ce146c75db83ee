"""Benchmark records: every published format, from a file or the hub, a bad one is named."""

import json

import datasets
import pytest

import rome_mlx as rm
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.questions import read_zsre

EASYEDIT = {"case_id": 7, "prompt": "The mother tongue of Ann is", "subject": "Ann",
            "target_new": "Dutch", "ground_truth": "French", "rephrase_prompt": "Ann speaks",
            "locality_prompt": "Bob speaks", "locality_ground_truth": "Greek"}
ZSRE = {"subject": "Ann", "src": "Where was Ann born?", "alt": "Oslo", "answers": ["Rome"],
        "rephrase": "What is Ann's birthplace?", "loc": "nq question: who is he",
        "loc_ans": "nobody"}
PORTABLE = {**ZSRE, "portability": {"New Question": "In which country was Ann born?",
                                    "New Answer": "Norway"}}


def record(i, **changes):
    rewrite = {"prompt": "{} is in", "subject": f"s{i}", "relation_id": f"P{i % 2}",
               "target_new": {"str": "xy", "id": "Q1"}, "target_true": {"str": "z"}}
    return {"case_id": i, "requested_rewrite": {**rewrite, **changes},
            "paraphrase_prompts": [f"a s{i} at"], "neighborhood_prompts": ["t is in", "u is in"],
            "generation_prompts": [f"s{i} was"]}


@pytest.fixture
def write(tmp_path):
    def to_file(records, name="data.json"):
        path = tmp_path / name
        path.write_text(json.dumps(records))
        return path

    return to_file


def test_a_relation_and_a_limit_choose_the_cases(write):
    data = write([record(i) for i in range(6)])
    assert [c.case_id for c in read_counterfact(data, 2, "P1")] == [1, 3]
    with pytest.raises(rm.RomeError, match="P9"):
        read_counterfact(data, relation="P9")


@pytest.mark.parametrize("bad", [
    {}, [], [3], [{}], [record(0), record(0)], [record(1, prompt="no place")],
    [record(1, target_true={"str": " "})], [{**record(1), "neighborhood_prompts": [""]}],
    [{**record(1), "paraphrase_prompts": "a text"}], [{**EASYEDIT, "subject": "Zoe"}]])
def test_a_bad_record_is_named(bad, write):
    with pytest.raises(rm.RomeError, match=r"data\.json"):
        read_counterfact(write(bad))


def test_bad_records_are_left_out_when_asked_and_named(write):
    data, skipped = write([record(0), 3, record(1, prompt="no place"), record(0), record(4)]), []
    assert [c.case_id for c in read_counterfact(data, skipped=skipped)] == [0, 4]
    assert [bad["record"] for bad in skipped] == [1, 2, 3]
    assert "no place" in skipped[1]["reason"] and "twice" in skipped[2]["reason"]
    with pytest.raises(rm.RomeError, match="all 1 records"):
        read_counterfact(write([3]), skipped=[])


def test_a_record_of_easyedit_has_one_paraphrase_and_one_neighbor(write):
    case = read_counterfact(write([EASYEDIT]))[0]
    assert (case.case_id, case.request) == (7, rm.EditRequest(
        "The mother tongue of {} is", "Ann", "Dutch", "French"))
    assert case.paraphrases == ("Ann speaks",) and case.neighbors == ("Bob speaks",)
    assert case.neighbor_answer == "Greek"


def test_zsre_writes_the_answer_or_what_the_portability_question_asks_about(write):
    plain, portable = read_zsre(write([ZSRE, PORTABLE]))
    assert plain.request == rm.EditRequest("Where was {} born?", "Ann", "Rome", "Rome")
    assert plain.portability is None and plain.neighbors == (
        ("nq question: who is he?", "nobody"),)
    assert portable.request.target_new == "Oslo"
    assert portable.portability == ("In which country was Ann born?", "Norway")


def test_a_name_that_is_no_file_is_a_hub_data_set(write, monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        return {"test": [record(9)], "train": [record(i) for i in range(3)]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [c.case_id for c in read_counterfact("someone/counterfact")] == [0, 1, 2]
    assert asked == ["someone/counterfact"]
    with pytest.raises(rm.RomeError, match=r"no/such\.json"):
        read_counterfact("no/such.json")
    assert len(asked) == 1


def test_published_files_are_read_whole(shared):
    cases = read_counterfact(shared / "data/counterfact_700.json")
    assert len(cases) == 700 and all(len(c.neighbors) == 10 for c in cases)
    skipped = []
    questions = read_zsre(shared / "data/zsre_800.json", skipped=skipped)
    assert len(questions) + len(skipped) == 800 and len(skipped) < 40
    assert all(case.portability for case in questions)


def test_our_own_records_are_what_they_should_be():
    cases = read_counterfact()
    assert len(cases) >= 60 and len({c.request.text for c in cases}) == len(cases)
    assert len({c.relation for c in cases}) >= 4
    assert len({c.request.target_true for c in cases}) > 20
    for case in cases:
        assert len(case.paraphrases) == 2 and len(set(case.neighbors)) == 10
        assert case.generation and case.request.target_new != case.request.target_true
        for prompt in (case.request.text, *case.paraphrases, *case.neighbors):
            assert case.request.target_true not in prompt.split()
        assert not any(case.request.subject in prompt for prompt in case.neighbors)
