import json

import pytest

from rome_mlx.errors import RomeError
from rome_mlx.facts import Fact
from rome_mlx.storage.fact_files import read_facts


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_template_comes_from_the_prompt_and_not_from_the_record(tmp_path):
    path = write(tmp_path / "known.json", [{
        "subject": "Vinson Massif", "attribute": "Antarctica", "known_id": 0,
        "template": "{} is located in the continent",
        "prompt": "Vinson Massif is located in the continent of"}])
    fact, = read_facts(path)
    assert fact == Fact("{} is located in the continent of", "Vinson Massif", "Antarctica")


def test_jsonl_with_a_template_and_without_an_attribute_is_read(tmp_path):
    path = write(tmp_path / "facts.jsonl",
                 '{"prompt": "The {} is in", "subject": "Louvre"}\n\n'
                 '{"prompt": "{} is a", "subject": "Rome"}\n')
    assert read_facts(path) == [Fact("The {} is in", "Louvre"), Fact("{} is a", "Rome")]
    assert read_facts(path, limit=1) == [Fact("The {} is in", "Louvre")]


@pytest.mark.parametrize("bad, says", [
    ({"prompt": "Rome is"}, "record 1 .* has no subject"),
    ({"subject": "Rome", "prompt": 7}, "record 1 .* has no prompt"),
    ({"subject": "Rome", "prompt": "Paris is in"}, "record 1 .*does not occur"),
    ({"subject": "Rome", "prompt": "{} is {}"}, "record 1 .* exactly one"),
    ({"subject": "Rome", "prompt": "{} is", "attribute": ["Italy"]}, "has no attribute"),
    ("Rome", "record 1 .* is not a record"),
])
def test_a_bad_record_is_named_by_its_index(tmp_path, bad, says):
    path = write(tmp_path / "facts.json", [{"prompt": "{} is", "subject": "Rome"}, bad])
    with pytest.raises(RomeError, match=says):
        read_facts(path)


@pytest.mark.parametrize("content", ["", "{}", "[]", "no json", "7"])
def test_what_is_not_a_facts_file_is_refused(tmp_path, content):
    with pytest.raises(RomeError):
        read_facts(write(tmp_path / "facts.json", content))


def test_a_missing_file_and_a_limit_below_one_are_refused(tmp_path):
    with pytest.raises(RomeError, match="cannot read"):
        read_facts(tmp_path / "none.json")
    path = write(tmp_path / "facts.json", [{"prompt": "{} is", "subject": "Rome"}])
    with pytest.raises(RomeError, match="limit is 0"):
        read_facts(path, limit=0)


def test_every_published_known_fact_is_read_and_its_text_is_its_prompt(shared):
    path = shared / "data/known_900.json"
    records = json.loads(path.read_text())
    assert [fact.text for fact in read_facts(path)] == [r["prompt"] for r in records]
