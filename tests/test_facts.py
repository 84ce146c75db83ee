"""Facts and requests refuse what cannot be traced or written, saying what to give."""

import pytest

from rome_mlx.errors import RomeError
from rome_mlx.facts import EditRequest, Fact


def test_the_text_has_the_subject_in_its_place():
    fact = Fact("Where is {}? It is in", "the Louvre", "Paris")
    assert fact.text == "Where is the Louvre? It is in"
    start, end = fact.subject_span
    assert fact.text[start:end] == "the Louvre" and fact.attribute == "Paris"


def test_a_subject_with_braces_is_taken_as_it_is():
    fact = Fact("{} is written in", "C{}")
    assert fact.text == "C{} is written in" and fact.subject_span == (0, 3)


def test_a_request_is_its_fact_with_a_target():
    request = EditRequest("{} is in", "The Louvre", "Rome", "Paris")
    assert request.fact == Fact("{} is in", "The Louvre")
    assert request.text == "The Louvre is in" and request.subject_span == (0, 10)


def test_from_text_finds_the_first_occurrence():
    fact = Fact.from_text("Rome and Rome are in", "Rome", "Italy")
    assert fact == Fact("{} and Rome are in", "Rome", "Italy")


@pytest.mark.parametrize("text, subject, said", [
    ("The Louvre is in", "Eiffel", "'Eiffel' does not occur in 'The Louvre is in'"),
    ("The Louvre is in", "", "'' does not occur"), ("The Louvre is in", " ", "does not occur"),
    ("{} is The Louvre in", "The Louvre", "remove it"),
])
def test_from_text_refuses(text, subject, said):
    with pytest.raises(RomeError, match=said):
        Fact.from_text(text, subject)


@pytest.mark.parametrize("prompt, subject, said", [
    ("The Louvre is in", "The Louvre", r"has 0 '\{\}'.*for example '\{\} is in'"),
    ("It is in", "The Louvre", r"needs exactly one.*'\{\} is located in the city of'"),
    ("{} is {}", "The Louvre", r"has 2 '\{\}'"),
    ("", "The Louvre", r"has 0 '\{\}'"),
    (None, "The Louvre", "is not a text"),
    ("{} is in", "", "the subject '' is empty"),
    ("{} is in", "  \n", "is empty"),
    ("{} is in", None, "the subject None is empty"),
])
@pytest.mark.parametrize("kind", [Fact, EditRequest])
def test_a_prompt_or_subject_that_cannot_be_used_is_refused(kind, prompt, subject, said):
    with pytest.raises(RomeError, match=said):
        kind(prompt, subject, *(["Rome"] if kind is EditRequest else []))


@pytest.mark.parametrize("target", ["", " ", "\n", None, 3])
def test_an_empty_target_is_refused(target):
    with pytest.raises(RomeError, match="is empty; give the words to write"):
        EditRequest("{} is in", "The Louvre", target)
