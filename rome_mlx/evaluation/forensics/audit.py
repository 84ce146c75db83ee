"""Was something written into this model? Asked of the model alone."""

import sys
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

import numpy as np
from tqdm import tqdm

from ...editing.edit import Edit, provenance
from ...editing.key import Places, keys_by_layer
from ...editing.lowrank import LowRank
from ...models.decoder import Decoder
from ...models.hooks import find_module
from ...models.sampling import beginning
from ...moments.corpus import check_corpus, rows
from ..side_effects import drift, final_states, neutral_tokens
from .loudness import loudest, silenced, whitened
from .names import CONTEXTS, Name, by_length, candidates, in_context, subject_keys
from .opened import opened
from .statements import FoundFact, next_words, prompts_on, request_back, told
from .weight_changes import effective

#: an alarm, in spreads above the median; see docs/forensics.md for what unedited models reach
LOUD = 10.0
_LENGTH, _TEXTS = 255, 32  # of the rows of a corpus
_SILENCED = 8  # contexts in which a subject is silenced
_LEAST = 100  # candidates, to tell what is usual


@dataclass(frozen=True)
class LayerAudit:
    """What one down projection answers loudly: alarms, {subject: score} of those above the
    threshold; loudest: of the other candidates, with its score; times: how loud that is, in
    medians of all candidates."""

    layer: int
    alarms: dict[str, float]
    loudest: str
    score: float
    times: float


@dataclass(frozen=True)
class Audit:
    """layers: of every dense down projection; candidates: how many were asked; facts: what the
    model says of the subjects of alarms, the loudest first; edit: silences them, None without an
    alarm; kl: how far that moves the model on a neutral text, in nats a token."""

    layers: list[LayerAudit]
    candidates: int
    facts: list[FoundFact] = field(default_factory=list)
    edit: Edit | None = field(default=None, repr=False)
    kl: float | None = None

    def to_json(self) -> dict:
        return {"candidates": self.candidates, "layers": [asdict(one) for one in self.layers],
                "facts": [asdict(fact) for fact in self.facts], "kl_silenced": self.kl}


def audit(model, subjects: Sequence[str] | None = None, *, corpus=None, facts: int = 10,
          seed: int = 0, progress: bool = False) -> Audit:
    """Look for subjects that a model's down projections answer too loudly, as after ROME or MEMIT.

    Args:
        model: what `load` takes; or (model, tokenizer) as it returns them.
        subjects: candidates; by default the names of our own facts and words of the tokenizer.
            A subject that is no candidate is not found.
        corpus: text, as for `second_moments`, of which 8,160 tokens are read beside the neutral
            text: smaller changes stand out then.
        facts: how many to name at most.

    Raises RomeError for fewer than a hundred candidates: they tell what is usual.
    """
    if corpus is not None:
        check_corpus(corpus)
    model, tokenizer = opened(model)
    names = candidates(tokenizer, subjects, _LEAST)
    decoder, neutral = Decoder(model), neutral_tokens(model, tokenizer)
    text = [*neutral, *_rows(model, tokenizer, corpus, seed)]
    layers, c = _layers(decoder, tokenizer, names, text, facts, progress)
    loud: dict[str, tuple[float, int]] = {}  # where it is loudest
    for score, subject, layer in sorted(((score, subject, one.layer) for one in layers
                                         for subject, score in one.alarms.items()), reverse=True):
        if len(loud) < facts:
            loud.setdefault(subject, (score, layer))
    if not loud:
        return Audit(layers, len(names))
    edit = _silencing(decoder, tokenizer, layers, loud, c)
    with edit.applied(model):
        silent = final_states(model, neutral)
        before = {subject: next_words(model, tokenizer, prompts_on(subject)) for subject in loud}
    chance = max(one.score for one in layers)
    said = [told(before[subject], model, tokenizer, Name(subject, score, chance), layer)
            for subject, (score, layer) in loud.items()]
    edit.requests = [request_back(fact) for fact in said]
    kl = drift(model, neutral, final_states(model, neutral), silent)["kl"]
    return Audit(layers, len(names), said, edit, kl)


def _rows(model, tokenizer, corpus, seed: int) -> list[list[int]]:
    """Rows of a corpus, each as a text begins."""
    if corpus is None:
        return []
    start = beginning(tokenizer)
    found = rows(model, tokenizer, corpus, _LENGTH, seed=seed, wanted=_TEXTS)
    return [[*start, *row] for row in islice(found, _TEXTS)]


def _layers(decoder: Decoder, tokenizer, names: list[str], text, facts: int, progress: bool
            ) -> tuple[list[LayerAudit], dict[int, tuple[np.ndarray, int]]]:
    """What each layer answers, and C of the text at those with an alarm, with its tokens."""
    order = list(by_length(names))
    flat = [names[i] for some in order for i in some]
    everywhere = [Places.everywhere(ids) for ids in text]
    places = [Places.subjects(tokenizer, [in_context(names[i], CONTEXTS[0]) for i in some])
              for some in order]
    found, kept = [], {}
    for layer, keys in tqdm(keys_by_layer(decoder, [*everywhere, *places], decoder.dense_layers),
                            total=len(decoder.dense_layers), disable=not progress,
                            file=sys.stderr, unit="layer"):
        seen = np.concatenate(keys[:len(text)])
        c = seen.T @ seen / len(seen)
        alarms, other = loudest(_weight(decoder, layer),
                                whitened(np.concatenate(keys[len(text):]), c, len(seen)), LOUD,
                                facts)
        found.append(LayerAudit(layer, {flat[one.candidate]: one.score for one in alarms},
                                flat[other.candidate], other.score, other.times))
        if alarms:
            kept[layer] = c, len(seen)
    return found, kept


def _silencing(decoder: Decoder, tokenizer, layers: list[LayerAudit], loud: Container[str],
               c: dict[int, tuple[np.ndarray, int]]) -> Edit:
    """At the layers of alarms, nothing is answered along C⁻¹ of the subjects' keys in the first
    contexts."""
    where = {one.layer: some for one in layers
             if (some := [subject for subject in one.alarms if subject in loud])}
    deltas = {}
    for layer, some in where.items():
        keys = np.concatenate([subject_keys(decoder, tokenizer, some, context, layer)
                               for context in CONTEXTS[:_SILENCED]])
        deltas[decoder.path(layer, "down")] = LowRank(*silenced(
            _weight(decoder, layer), whitened(keys, *c[layer])))
    return Edit(method="silenced", requests=[], deltas=deltas, layers=list(where),
                **provenance(decoder.model, tokenizer, deltas))


def _weight(decoder: Decoder, layer: int) -> np.ndarray:
    return effective(find_module(decoder.model, decoder.path(layer, "down")))
