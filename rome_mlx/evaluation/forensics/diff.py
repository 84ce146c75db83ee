"""Two versions of a model: what was done, to whom, and the way back."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
from tqdm import tqdm

from ...editing.edit import Edit, provenance
from ...editing.lowrank import LowRank
from ...models.decoder import Decoder
from ...moments.lookup import ensure_moments
from ..side_effects import drift, final_states, neutral_tokens
from .growing import endings, grown
from .names import Name, Rows, candidates, named
from .opened import opened
from .spectrum import Spectrum
from .statements import FoundFact, next_words, prompts_on, request_back, told
from .vocabulary import Vocabulary
from .weight_changes import WeightChange, changes

VERDICTS = {
    "identical": "The two models are the same.",
    "rounded": "The model is the base but for rounding.",
    "requantized": "The model is the base on another grid: nothing stands out of the rounding.",
    "rome": "One down projection has a change of low rank, as ROME writes it.",
    "memit": "Several down projections have changes of low rank, as MEMIT writes them.",
    "lora": "The weights have changes of low rank beyond the down projections, as LoRA's.",
    "fine-tuned": "The weights changed in all directions, as by training or by merging models.",
    "other": "The model differs in a way that is none of those known here.",
}

#: times the usual: training left up to 2.1 in any layer (`benchmarks/audit.py`)
_STANDS_OUT = 4
_SHOWN = 5  # endings, and names of a subject


@dataclass(frozen=True)
class Found:
    """verdict: a name of VERDICTS; weights: every array that differs; same: how many do not;
    facts: what was written, the surest first; edit: takes the low-rank changes back from the
    changed model, None where there are none; kl: how far the model is from the base then, in nats
    a token of a neutral text; endings: where no subjects were given, the tokens in which the
    subject may end, with their scores, the best first; grown: where names were grown, the best
    ones of each subject and their scores."""

    verdict: str
    weights: list[WeightChange]
    same: int
    facts: list[FoundFact]
    edit: Edit | None = field(default=None, repr=False)
    kl: float | None = None
    endings: list[tuple[str, float]] = field(default_factory=list)
    grown: list[list[tuple[str, float]]] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        stands_out = self.verdict == "fine-tuned" and self.edit is not None
        return VERDICTS[self.verdict] + (" An edit stands out of that." if stands_out else "")

    def to_json(self) -> dict:
        return {"verdict": self.verdict, "same": self.same,
                "weights": [one.to_json() for one in self.weights],
                "facts": [asdict(fact) for fact in self.facts], "kl_undone": self.kl,
                "endings": self.endings, "grown": self.grown}


def diff(base, model, subjects: Sequence[str] | None = None, *, moments=None, corpus=None,
         facts: int | None = None, grow: bool = False, seed: int = 0,
         trust_remote_code: bool = False, progress: bool = False) -> Found:
    """Compare a model with the one that it was made from.

    Args:
        base, model: what `load` takes, model also an adapter's directory; or (model, tokenizer) as
            `load` returns them, with dtype="stored" where they are stored in fewer bits: rounding
            cannot be told once they are cast.
        subjects: candidates for what was written about; by default the names of our own facts and
            words of the tokenizer.
        moments, corpus: C of the base at the changed layers, as for `locate_then_edit`.
        facts: how many to name at most (default: the rank of the change).
        grow: also make names up, token by token, so that their keys fit; the best of each subject
            is then a candidate too.

    Raises RomeError for models of different shapes and for damaged ones.
    """
    ours = partial(opened, base, trusted=trust_remote_code)
    theirs = partial(opened, model, base=base, trusted=trust_remote_code)
    (first, _), (second, _) = ours(working=False), theirs(working=False)
    down = Decoder(first).down_paths
    found = list(tqdm(changes(first, second, set(down)), disable=not progress, file=sys.stderr,
                      unit="array"))
    del first, second  # one model at a time
    weights = [one for one in found if isinstance(one, WeightChange)]
    result = Found(verdict(weights, set(down)), weights, len(found) - len(weights), [])
    if not (low := written(result.verdict, weights, set(down))):
        return result
    base, tokenizer = ours()
    c = ensure_moments(base, tokenizer, [down[path] for path in low], moments, seed=seed,
                       corpus=corpus)
    rows = [Rows.of(down[path], one.right, c.matrix(down[path])) for path, one in low.items()]
    most = facts or max(one.basis.shape[1] for one in rows)
    listed = candidates(tokenizer, subjects)
    last, made = _unlisted(base, tokenizer, rows, subjects is None, most if grow else 0, progress)
    names = _names(base, tokenizer, rows, [*listed, *(one[0][0] for one in made)], most, progress)
    neutral = neutral_tokens(base, tokenizer)
    states = final_states(base, neutral)
    del c, rows, base
    changed, tokenizer = theirs()
    edit = undoing(changed, tokenizer, low, [down[path] for path in low])
    with edit.applied(changed, force=True):
        kl = drift(changed, neutral, states, final_states(changed, neutral))["kl"]
        without = [next_words(changed, tokenizer, prompts_on(name.subject)) for name in names]
    said = [told(words, changed, tokenizer, name, edit.layer)
            for words, name in zip(without, names, strict=True)]
    edit.requests = [request_back(fact) for fact in said]
    return replace(result, facts=said, edit=edit, kl=kl, endings=last, grown=made)


def _unlisted(base, tokenizer, rows: list[Rows], ends: bool, most: int, progress: bool
              ) -> tuple[list, list]:
    """What the change tells without a list: `endings`, and `most` subjects grown."""
    if not (ends or most):
        return [], []
    vocabulary = Vocabulary(base, tokenizer, rows, growing=most > 0, progress=progress)
    last = endings(vocabulary)[:_SHOWN] if ends else []
    with tqdm(total=most, disable=not (progress and most), file=sys.stderr, unit="subject") as bar:
        made = grown(vocabulary, rows, most, bar.update) if most else []
    return [(vocabulary.text([token]), score) for token, score in last], [
        names[:_SHOWN] for names in made]


def _names(base, tokenizer, rows: list[Rows], names: list[str], most: int,
           progress: bool) -> list[Name]:
    names = list(dict.fromkeys(names))
    with tqdm(total=len(names), disable=not progress, file=sys.stderr, unit="name") as bar:
        return named(base, tokenizer, rows, names, most,
                     lambda done: bar.update(done - bar.n))


def verdict(weights: Sequence[WeightChange], down: set[str]) -> str:
    """Of the arrays that differ; down: paths of the down projections."""
    kinds = {one.kind for one in weights}
    if not kinds:
        return "identical"
    if kinds <= {"rounded", "requantized"}:
        return "requantized" if "requantized" in kinds else "rounded"
    low = {one.path for one in weights if one.kind == "low-rank"}
    spread = {one.path for one in weights if one.kind == "spread"}
    if low and not spread:
        if low <= down:
            return "rome" if len(low) == 1 else "memit"
        return "lora"
    return "fine-tuned" if len(spread) > len(low) else "other"


def written(kind: str, weights: Sequence[WeightChange], down: set[str]) -> dict[str, Spectrum]:
    """{path: change of low rank} of what an edit may have left in down projections; in a model that
    was trained, what stands out of the training: of the other down projections' largest singular
    values."""
    if kind in ("rome", "memit"):
        return {one.path: one.spectrum for one in weights if one.kind == "low-rank"}
    if kind != "fine-tuned":
        return {}
    there = {one.path: one.spectrum for one in weights if one.path in down and one.spectrum}
    usual = np.median([one.top for one in there.values()]) if there else 0.0
    cut = {path: one.largest(int((one.values > _STANDS_OUT * usual).sum()))
           for path, one in there.items()}
    return {path: one for path, one in cut.items() if one.rank}


def undoing(changed, tokenizer, low: Mapping[str, Spectrum], layers: list[int]) -> Edit:
    """The changed model's weights less their changes of low rank."""
    deltas = {path: LowRank(one.right * -one.values, one.left.T) for path, one in low.items()}
    return Edit(method="found", requests=[], deltas=deltas, layers=layers,
                **provenance(changed, tokenizer, deltas))
