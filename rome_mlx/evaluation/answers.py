"""Answers in free text: generated to the model's own end, and matched after normalisation."""

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

from ..models.probabilities import Said, said, token_scores
from ..models.tokens import encode

TOKENS = 40  # generated at most
_MARKS = str.maketrans({mark: " " for mark in string.punctuation + "“”‘’–—…"})


def normal(text: str) -> str:
    """In lower case, without accents, articles and punctuation, one space between words."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_MARKS)).split())


def says(text: str, answers: Iterable[str], instead: Iterable[str] = ()) -> bool:
    """Whether one of the answers stands in the text, word for word, and none of those it is to
    replace before it."""
    found, other = _first(text, answers), _first(text, instead)
    return found is not None and (other is None or found <= other)


def exactly(text: str, answers: Iterable[str]) -> bool:
    """Whether the text is one of the answers and nothing else."""
    return normal(text) in {normal(answer) for answer in answers} - {""}


def continued(model, tokenizer, prompts: Sequence[str], edits: Sequence | None = None
              ) -> list[Said]:
    """What the model says after each prompt, greedily until it stops or `TOKENS` tokens; edits: as
    for `said`."""
    return said(model, tokenizer, [(encode(tokenizer, prompt).ids, TOKENS) for prompt in prompts],
                edits)


def answered(model, tokenizer, questions: Sequence[tuple[str, str]], texts: Sequence[Said]
             ) -> list[dict]:
    """For each (prompt, target) what the model says, given as `texts`, whether it stopped, and
    whether the target's tokens are each the first choice when the ones before are given (teacher
    forcing)."""
    forced = token_scores(model, tokenizer, questions)
    return [{"prompt": prompt, "text": answer.text, "ended": answer.ended,
             "forced": all(first for _, first in tokens)}
            for (prompt, _), answer, tokens in zip(questions, texts, forced, strict=True)]


def _first(text: str, answers: Iterable[str]) -> int | None:
    """Where the first of the answers begins in the normal text."""
    whole = f" {normal(text)} "
    places = [whole.find(f" {normal(answer)} ") for answer in answers if normal(answer)]
    return min((place for place in places if place >= 0), default=None)
