"""What a changed model now says of a subject: the object, and the prompts that show it."""

from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from ...facts import EditRequest, Fact
from ...models.decoder import Decoder
from ...models.probabilities import log_probabilities, padded, said
from ...models.tokens import encode
from ...storage.fact_set import read_fact_set
from ...storage.wordings import wordings
from .names import Name

_SHOWN = 5  # prompts
_UNSAID = 1e-4  # a probability at which a word is hardly said
_ROWS = 32
_TOKENS = 6


@dataclass(frozen=True)
class Difference:
    """One prompt on which two models differ: the first choices' words, and how likely the changed
    model's is now and was before."""

    prompt: str
    base: str
    model: str
    probability: float
    before: float


@dataclass(frozen=True)
class FoundFact:
    """subject, with its score and what chance gives; object: the first word that the change makes
    the model say of it; layer: of the first changed weight; prompts: where it shows, the clearest
    first."""

    subject: str
    subject_score: float
    chance: float
    object: str
    layer: int
    prompts: list[Difference]


def prompts_on(subject: str) -> list[str]:
    """What can be said of a subject: the relations of CounterFact and of our own facts."""
    return [text.replace("{}", subject) for text in _texts()]


@cache
def _texts() -> tuple[str, ...]:
    return tuple(dict.fromkeys([*(one.text for one in wordings().values()),
                                *(relation.texts[0] for relation in read_fact_set())]))


def told(before: np.ndarray, changed, tokenizer, name: Name, layer: int) -> FoundFact:
    """What the changed model says of a subject, and did not. before: `next_words` without the
    change at `prompts_on` the subject."""
    prompts = prompts_on(name.subject)
    token, shown = differences(before, changed, tokenizer, prompts)
    return FoundFact(name.subject, name.score, name.chance,
                     object_of(changed, tokenizer, token, shown), layer, shown)


def request_back(fact: FoundFact) -> EditRequest:
    """What taking the change back writes: the base's answer, where it shows most."""
    if not fact.prompts or not fact.prompts[0].base.strip():
        return EditRequest("{} is", fact.subject, "what it was")
    shown = fact.prompts[0]
    found = Fact.from_text(shown.prompt, fact.subject)
    return EditRequest(found.prompt, fact.subject, shown.base, shown.model)


def next_words(model, tokenizer, prompts: list[str]) -> np.ndarray:
    """(prompts, vocabulary) log P of the next token."""
    decoder, rows = Decoder(model), [encode(tokenizer, prompt).ids for prompt in prompts]
    out = []
    with decoder.fast():
        for i in range(0, len(rows), _ROWS):
            some = rows[i: i + _ROWS]
            h = decoder.run(decoder.enter(decoder.embed(padded(some))))
            last = mx.array([len(ids) - 1 for ids in some])
            logits = decoder.logits(h[mx.arange(len(some)), last])
            out.append(np.array(log_probabilities(logits)))
    return np.concatenate(out)


def differences(words: np.ndarray, model, tokenizer, prompts: list[str]) -> tuple:
    """(the token that was given most, the prompts where it shows). words: `next_words` without
    the change. Given most is what has grown by the largest factor, over all prompts, where
    `_UNSAID` is added to every probability: an object, of which nothing was said before, before a
    word that is always likely, and before one that is never said."""
    before, now = np.exp(words), np.exp(next_words(model, tokenizer, prompts))
    token = int(np.argmax(np.log((now + _UNSAID) / (before + _UNSAID)).mean(0)))
    gain = now[:, token] - before[:, token]
    order = np.argsort(-gain)[:_SHOWN]
    found = [Difference(prompts[i], tokenizer.decode([int(before[i].argmax())]),
                        tokenizer.decode([token]), float(now[i, token]), float(before[i, token]))
             for i in order if gain[i] > 0.01]
    return token, found


def object_of(model, tokenizer, token: int, found: list[Difference]) -> str:
    """The word that begins with this token, as the changed model goes on at the clearest prompt
    where it says it."""
    text = tokenizer.decode([token])
    if found:
        answer = said(model, tokenizer, [(encode(tokenizer, found[0].prompt).ids, _TOKENS)])[0]
        text = answer.text if answer.first == token else text
    return text.strip().split("\n")[0].split(".")[0].split(",")[0].split(" ")[0].strip()
