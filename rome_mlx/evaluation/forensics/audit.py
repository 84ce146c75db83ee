"""Was something written into this model? Asked of the model alone."""

import sys
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from tqdm import tqdm

from ...editing.edit import Edit, provenance
from ...editing.key import Places, keys_by_layer
from ...editing.lowrank import LowRank
from ...models.decoder import Decoder
from ...models.hooks import find_module
from ...models.loading import load
from ..side_effects import drift, final_states, neutral_tokens
from .loudness import loudest, silenced, whitened
from .names import CONTEXTS, Name, by_length, candidates, in_context, subject_keys
from .statements import FoundFact, next_words, prompts_on, request_back, told
from .weight_changes import effective

#: an alarm, in spreads above the median; see docs/forensics.md for what unedited models reach
LOUD = 10.0
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


def audit(model, subjects: Sequence[str] | None = None, *, facts: int = 10,
          progress: bool = False) -> Audit:
    """Look for subjects that a model's down projections answer too loudly, as after ROME or MEMIT.

    Args:
        model: what `load` takes; or (model, tokenizer) as it returns them.
        subjects: candidates; by default the names of our own facts and words of the tokenizer.
            A subject that is no candidate is not found.
        facts: how many to name at most.

    Raises RomeError for fewer than a hundred candidates: they tell what is usual.
    """
    model, tokenizer = model if isinstance(model, tuple) else load(model)
    names = candidates(tokenizer, subjects, _LEAST)
    decoder, neutral = Decoder(model), neutral_tokens(model, tokenizer)
    layers, c = _layers(decoder, tokenizer, names, neutral, facts, progress)
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


def _layers(decoder: Decoder, tokenizer, names: list[str], neutral, facts: int, progress: bool
            ) -> tuple[list[LayerAudit], dict[int, np.ndarray]]:
    """What each layer answers, and C of the neutral text at those with an alarm."""
    order = list(by_length(names))
    flat = [names[i] for some in order for i in some]
    text = [Places.everywhere(ids) for ids in neutral]
    places = [Places.subjects(tokenizer, [in_context(names[i], CONTEXTS[0]) for i in some])
              for some in order]
    found, kept = [], {}
    for layer, keys in tqdm(keys_by_layer(decoder, [*text, *places], decoder.dense_layers),
                            total=len(decoder.dense_layers), disable=not progress,
                            file=sys.stderr, unit="layer"):
        seen = np.concatenate(keys[:len(text)])
        c = seen.T @ seen / len(seen)
        alarms, other = loudest(_weight(decoder, layer),
                                whitened(np.concatenate(keys[len(text):]), c), LOUD, facts)
        found.append(LayerAudit(layer, {flat[one.candidate]: one.score for one in alarms},
                                flat[other.candidate], other.score, other.times))
        if alarms:
            kept[layer] = c
    return found, kept


def _silencing(decoder: Decoder, tokenizer, layers: list[LayerAudit], loud: Container[str],
               c: dict[int, np.ndarray]) -> Edit:
    """At the layers of alarms, nothing is answered along C⁻¹ of the subjects' keys in all
    contexts."""
    deltas = {}
    for one in layers:
        if some := [subject for subject in one.alarms if subject in loud]:
            keys = np.concatenate([subject_keys(decoder, tokenizer, some, context, one.layer)
                                   for context in CONTEXTS])
            deltas[decoder.path(one.layer, "down")] = LowRank(*silenced(
                _weight(decoder, one.layer), whitened(keys, c[one.layer])))
    return Edit(method="silenced", requests=[], deltas=deltas,
                layers=[one.layer for one in layers if one.alarms],
                **provenance(decoder.model, tokenizer, deltas))


def _weight(decoder: Decoder, layer: int) -> np.ndarray:
    return effective(find_module(decoder.model, decoder.path(layer, "down")))
