"""Our set of public facts: the file is in order, and what is not would be found."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from samples import benchmark

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks/check_fact_set.py"


@pytest.fixture(scope="module")
def check():
    return benchmark("check_fact_set")


@pytest.fixture(scope="module")
def shipped(check):
    return json.loads(check.FACTS.read_text("utf-8"))


def test_the_shipped_facts_have_no_problem(check, shipped):
    assert check.problems(shipped) == []


def test_the_shipped_facts_make_questions_of_several_hops(check, shipped):
    two, three = check.chains(shipped, 2), check.chains(shipped, 3)
    assert len(two) + len(three) >= 400 and len({chain[1::2] for chain in two}) >= 30
    assert ("The Louvre", "city_of_sight", "Paris", "country_of_city", "France", "continent",
            "Europe") in three
    assert all(len(set(chain[::2])) == 4 for chain in three)


def test_a_chain_needs_one_kind_and_does_not_turn_back(check):
    about = {"lives": {"subject": "animal", "object": "country"},
             "capital": {"subject": "country", "object": "city"},
             "lies": {"subject": "city", "object": "country"},
             "food": {"subject": "dish", "object": "taste"}}
    facts = {"lives": [["panda", "China"]], "capital": [["China", "Beijing"]],
             "lies": [["Beijing", "China"]], "food": [["China", "sweet"]]}
    assert check.chains({"relations": about, "facts": facts}, 2) == [
        ("panda", "lives", "China", "capital", "Beijing")]


def add_fact(*fact):
    return lambda data: data["facts"]["capital"].append([*fact])


def add_text(text):
    return lambda data: data["relations"]["capital"]["texts"].append(text)


def cut(what, name, count):
    """Leaves a relation with so many texts or facts."""
    def damage(data):
        items = data["facts"][name] if what == "facts" else data["relations"][name]["texts"]
        del items[count:]
    return damage


def keep_one_object(data):
    facts = data["facts"]["continent"]
    data["facts"]["continent"] = [fact for fact in facts if fact[1] == "Europe"]


def rename_facts(data):
    data["facts"]["capitals"] = data["facts"].pop("capital")


def keep_relations(count):
    def damage(data):
        for part in data.values():
            for name in list(part)[count:]:
                del part[name]
    return damage


def doubt_the_question(data):
    data["relations"]["capital"]["question"] = "What is the capital?"


@pytest.mark.parametrize("damage, line", [
    (add_fact("France", "Paris"), "capital: fact twice: France - Paris"),
    (add_fact("France", "Lyon"), "capital: several objects for France: Lyon, Paris"),
    (cut("texts", "capital", 3), "capital: 3 texts, fewer than 4"),
    (cut("facts", "capital", 19), "capital: 19 facts of a relation, fewer than 20"),
    (keep_one_object, "continent: 1 objects, fewer than 3"),
    (add_text("The capital is"), "capital: not one {} in 'The capital is'"),
    (add_text("From {} to {} by"), "capital: not one {} in 'From {} to {} by'"),
    (doubt_the_question, "capital: not one {} in 'What is the capital?'"),
    (add_text("In {} governs "), "capital: spaces to spare in 'In {} governs '"),
    (add_text("The capital of {} is"), "capital: text twice: 'The capital of {} is'"),
    (add_fact("Atlantis", " Poseidonis"), "spaces to spare in the entity ' Poseidonis'"),
    (add_fact("Atlantis", "Poseidonis "), "spaces to spare in the entity 'Poseidonis '"),
    (add_fact("Atlantis", "Europe"), "Europe is used as several kinds: city, continent"),
    (rename_facts, "capitals: facts of an unknown relation"),
    (rename_facts, "capital: 0 facts of a relation, fewer than 20"),
    (keep_relations(24), "24 relations, fewer than 25"),
])
def test_every_kind_of_problem_is_found(check, shipped, damage, line):
    data = copy.deepcopy(shipped)
    damage(data)
    assert line in check.problems(data)


def test_too_few_facts_are_found(check, shipped):
    data = copy.deepcopy(shipped)
    for facts in data["facts"].values():
        del facts[20:]
    count = sum(map(len, data["facts"].values()))
    assert f"{count} facts, fewer than 1200" in check.problems(data)


def test_the_script_says_whether_the_file_is_in_order(shipped, tmp_path):
    good = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert good.returncode == 0 and "every fact is in order" in good.stdout
    assert "The capital of France is Paris" in good.stdout
    data = copy.deepcopy(shipped)
    add_fact("France", "Lyon")(data)
    (tmp_path / "facts.json").write_text(json.dumps(data), "utf-8")
    bad = subprocess.run([sys.executable, str(SCRIPT), "--data", str(tmp_path / "facts.json")],
                         capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stdout.splitlines() == ["capital: several objects for France: Lyon, Paris"]
