"""What an edited model can still do: choose the right one of four answers to facts of our own, and
read a text on nothing in particular. Once for all cases that were edited together."""

from functools import cache

import numpy as np

from ...storage.fact_set import read_fact_set
from ..collapse import perplexity
from ..metrics import target_scores
from ..side_effects import neutral_tokens

_ITEMS, _CHOICES = 200, 4
_LENGTH = 64  # tokens of a paragraph


def read(model, tokenizer, case) -> dict:
    """Whether the right one of the choices is the likeliest a token, and the perplexity."""
    return {"right": choices(model, tokenizer),
            "perplexity": perplexity(model, neutral_tokens(model, tokenizer, None, _LENGTH))}


def choices(model, tokenizer) -> list[bool]:
    """Of each of the facts, whether its right answer is the likeliest a token of the four."""
    items = _items()
    scores = target_scores(model, tokenizer, [(prompt, choice) for prompt, answers in items
                                              for choice in answers])
    nll = np.array([score.nll for score in scores]).reshape(len(items), _CHOICES)
    return (nll.argmin(1) == 0).tolist()


def measures(now: dict, before: dict | None) -> dict[str, float]:
    """Percent of the items that are right, of those that were (kept) and were not (gained), and
    the perplexity, in its ratio to the unedited model's too."""
    right = np.array(now["right"])
    out = {"ability_choices": 100 * float(right.mean()), "ability_perplexity": now["perplexity"]}
    if before is not None:
        was = np.array(before["right"])
        out["ability_perplexity_ratio"] = now["perplexity"] / before["perplexity"]
        out |= {name: 100 * float(right[of].mean()) for name, of in
                (("ability_kept", was), ("ability_gained", ~was)) if of.any()}
    return out


@cache
def _items() -> list[tuple[str, list[str]]]:
    """(prompt, answers, the right one first), the relations in turn."""
    random, relations = np.random.RandomState(0), read_fact_set()
    relations = [one for one in relations if len(one.objects) >= _CHOICES]
    items = []
    for i in range(_ITEMS):
        relation = relations[i % len(relations)]
        subject, answer = relation.facts[random.randint(len(relation.facts))]
        wrong = random.permutation([o for o in relation.objects if o not in (answer, subject)])
        items.append((relation.texts[0].replace("{}", subject),
                      [answer, *map(str, wrong[:_CHOICES - 1])]))
    return items
