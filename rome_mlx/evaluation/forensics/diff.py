"""Two versions of a model: what was done, to whom, and the way back."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from ...editing.edit import Edit, provenance
from ...editing.lowrank import LowRank
from ...errors import RomeError
from ...models.decoder import Decoder
from ...models.loading import load
from ...models.weights import cast
from ...moments.lookup import ensure_moments
from ..side_effects import drift, final_states, neutral_tokens
from .names import Name, Rows, candidates, named
from .spectrum import Spectrum
from .statements import FoundFact, next_words, prompts_on, request_back, told
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


@dataclass(frozen=True)
class Found:
    """verdict: a name of VERDICTS; weights: every array that differs; same: how many do not;
    facts: what was written, the surest first; edit: takes the low-rank changes back from the
    changed model, None where there are none; kl: how far the model is from the base then, in nats
    a token of a neutral text."""

    verdict: str
    weights: list[WeightChange]
    same: int
    facts: list[FoundFact]
    edit: Edit | None = field(default=None, repr=False)
    kl: float | None = None

    def to_json(self) -> dict:
        return {"verdict": self.verdict, "same": self.same,
                "weights": [one.to_json() for one in self.weights],
                "facts": [asdict(fact) for fact in self.facts], "kl_undone": self.kl}


def diff(base, model, subjects: Sequence[str] | None = None, *, moments=None, corpus=None,
         facts: int | None = None, seed: int = 0, trust_remote_code: bool = False,
         progress: bool = False) -> Found:
    """Compare a model with the one that it was made from.

    Args:
        base, model: what `load` takes, model also an adapter's directory; or (model, tokenizer) as
            `load` returns them, with dtype="stored" where they are stored in fewer bits: rounding
            cannot be told once they are cast.
        subjects: candidates for what was written about; by default the names of our own facts and
            words of the tokenizer.
        moments, corpus: C of the base at the changed layers, as for `locate_then_edit`.
        facts: how many to name at most (default: the rank of the change).

    Raises RomeError for models of different shapes and for damaged ones.
    """
    options = {"dtype": "stored", "lazy": True}
    if trust_remote_code:
        options |= {"trust_remote_code": True, "tokenizer_config": {"trust_remote_code": True}}
    ours = [not isinstance(one, tuple) for one in (base, model)]
    if ours[1]:
        model = _loaded(model, base if ours[0] else None, options)
    if ours[0]:
        base = load(base, **options)
    (base, tokenizer), (changed, _) = base, model
    found = list(tqdm(changes(base, changed), disable=not progress, file=sys.stderr, unit="array"))
    weights = [one for one in found if isinstance(one, WeightChange)]
    decoder = Decoder(base)
    down = {decoder.path(i, "down"): i for i in decoder.dense_layers}
    result = Found(verdict(weights, set(down)), weights, len(found) - len(weights), [])
    if result.verdict not in ("rome", "memit"):
        return result
    low = {one.path: one.spectrum for one in weights if one.kind == "low-rank"}
    edit = undoing(changed, tokenizer, low, [down[path] for path in low])
    for one, mine in ((base, ours[0]), (changed, ours[1])):
        if mine and mx.default_device() == mx.cpu:  # where other products are slow
            cast(one, mx.float32)
    c = ensure_moments(base, tokenizer, edit.layers, moments, seed=seed, corpus=corpus)
    names = _names(base, tokenizer, [Rows.of(down[path], one.right, c.matrix(down[path]))
                                     for path, one in low.items()], subjects, facts, progress)
    said = [told(next_words(base, tokenizer, prompts_on(name.subject)), changed, tokenizer, name,
                 edit.layer) for name in names]
    edit.requests = [request_back(fact) for fact in said]
    neutral = neutral_tokens(base, tokenizer)
    with edit.applied(changed, force=True):
        kl = drift(base, neutral, final_states(base, neutral), final_states(changed, neutral))["kl"]
    return replace(result, facts=said, edit=edit, kl=kl)


def _loaded(path, base, options: dict) -> tuple:
    """The changed model, an adapter on its base."""
    if not (Path(path) / "adapter_config.json").is_file():
        return load(path, **options)
    if base is None:
        raise RomeError(f"{str(path)!r} is an adapter; give the path of its base, not a loaded "
                        "model")
    return load(base, adapter_path=str(path), **options)


def _names(base, tokenizer, rows: list[Rows], subjects, facts: int | None,
           progress: bool) -> list[Name]:
    names = candidates(tokenizer, subjects)
    most = facts or max(one.basis.shape[1] for one in rows)
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


def undoing(changed, tokenizer, low: Mapping[str, Spectrum], layers: list[int]) -> Edit:
    """The changed model's weights less their changes of low rank."""
    deltas = {path: LowRank(one.right * -one.values, one.left.T) for path, one in low.items()}
    return Edit(method="found", requests=[], deltas=deltas, layers=layers,
                **provenance(changed, tokenizer, deltas))
