"""Configurations tried on records: each record edited by itself, measured, and taken back."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ..editing.hyperparameters import ValueHyperparameters
from ..editing.methods.rome import ROME, rank_one_edits
from ..evaluation.side_effects import drift, final_states, neutral_tokens
from ..intervals import mean_interval
from ..models.probabilities import token_scores
from ..storage.run_store import Item, Run
from .known import Record

GROUPS = ("rewrite", "paraphrase", "neighborhood")
_ROWS = 40  # contexts whose values are found side by side


@dataclass(frozen=True)
class Configuration:
    """One way to edit: layer, and the method's hyperparameters in full."""

    layer: int
    hyperparameters: ValueHyperparameters = field(hash=False)

    def to_json(self) -> dict:
        return {"method": "rome", "layers": [self.layer],
                "hyperparameters": without_layers(self.hyperparameters)}


def without_layers(hp: ValueHyperparameters) -> dict:
    """The numbers of a configuration, without what is said beside them."""
    return {name: value for name, value in asdict(hp).items()
            if name not in ("preset", "layer", "layers")}


class Bench:
    """Records, and what the model makes of them as it is; measurements are kept in a Run."""

    def __init__(self, run: Run, model, tokenizer, records: Sequence[Record]):
        self.run, self.model, self.tokenizer, self.records = run, model, tokenizer, records
        self.neutral = neutral_tokens(model, tokenizer)
        self.states = final_states(model, self.neutral)
        self.unedited = run.map(
            [Item(f"unedited_{name_of(record)}", {"record": record.to_json()})
             for record in records],
            lambda group, todo: {i: self.answers(records[i]) for i in todo})

    def drift(self) -> float:
        """KL(unedited ‖ now) in nats a token of a neutral text."""
        return drift(self.model, self.neutral, self.states,
                     final_states(self.model, self.neutral))["kl"]

    def answers(self, record: Record) -> dict[str, list[list[float]]]:
        """{group: [[NLL a token of the right answer, of the other] of each prompt]}."""
        new, old = record.request.target_new, record.request.target_true
        asked = {"rewrite": [(record.request.text, new, old)],
                 "paraphrase": [(text, new, old) for text in record.paraphrases],
                 "neighborhood": [(text, own, new) for text, own in record.neighbors]}
        pairs = [(text, answer) for prompts in asked.values()
                 for text, *answers in prompts for answer in answers]
        nll = iter([float(np.mean([one for one, _ in tokens]))
                    for tokens in token_scores(self.model, self.tokenizer, pairs)])
        return {group: [[next(nll), next(nll)] for _ in prompts]
                for group, prompts in asked.items()}


class Tried:
    """Configurations with their results on the records of a bench, by name."""

    def __init__(self, bench: Bench, moments, seed: int = 0):
        self.bench, self.moments, self.seed = bench, moments, seed
        self.tried: dict[str, tuple] = {}

    def evidence(self) -> list[dict]:
        """A row for every configuration, on as many records as it came to."""
        return [{**configuration.to_json(), **measures(results, self.bench.unedited)}
                for configuration, results in self.tried.values()]


class Trials(Tried):
    """What every configuration tried gave on each record of a bench."""

    def of(self, configuration: Configuration, count: int) -> list[dict]:
        """The results on the first `count` records: {group: [[NLL, NLL]]} and "kl"."""
        name, about = name_of(configuration), configuration.to_json()
        items = [Item(f"{name}_{name_of(record)}", {**about, "record": record.to_json()})
                 for record in self.bench.records[:count]]
        contexts = configuration.hyperparameters.contexts
        results = self.bench.run.map(items, lambda group, todo: self._edited(configuration, todo),
                                     together=max(1, _ROWS // contexts))
        if len(results) >= len(self.tried.get(name, (None, []))[1]):
            self.tried[name] = configuration, results
        return results

    @property
    def edits(self) -> int:
        """How many edits were made in all."""
        return sum(len(results) for _, results in self.tried.values())

    def _edited(self, configuration: Configuration, todo: list[int]) -> dict[int, dict]:
        hp, bench = configuration.hyperparameters, self.bench
        model, tokenizer = bench.model, bench.tokenizer
        edits = rank_one_edits(
            "rome", model, tokenizer, [bench.records[i].request for i in todo],
            configuration.layer, moments=self.moments, hyperparameters=hp, seed=self.seed,
            context_templates=ROME.kept_templates(model, tokenizer, self.seed, hp))
        found = {}
        for i, edit in zip(todo, edits, strict=True):
            with edit.applied(model):
                found[i] = bench.answers(bench.records[i]) | {"kl": bench.drift()}
        return found


def name_of(value: Configuration | Record) -> str:
    return hashlib.sha256(json.dumps(value.to_json()).encode()).hexdigest()[:10]


def score(results: Sequence[dict]) -> float:
    """How good a configuration is, up to 100: a harmonic mean, less a hundredth part for every
    hundredth nat of KL on a neutral text.

    Of rewrites it takes P(right), that the model says it; of paraphrases and neighbors, which may
    go on in many ways, P(right) / (P(right) + P(wrong)); probabilities a token. Not successes:
    few records are at hand, and a narrow success counts less.
    """
    def mean(group: str, share: Callable[[np.ndarray], np.ndarray]) -> float:
        return float(np.mean([share(np.exp(-np.array(result[group]))).mean()
                              for result in results if result[group]]))

    shares = [mean("rewrite", lambda p: p[:, 0]),
              *(mean(group, lambda p: p[:, 0] / p.sum(axis=1)) for group in GROUPS[1:])]
    return float(100 * len(GROUPS) / sum(1 / share for share in shares)
                 * np.exp(-np.mean([result["kl"] for result in results])))


def measures(results: Sequence[dict], unedited: Sequence[dict], *,
             intervals: bool = False) -> dict:
    """{"records", "es", "ps", "ns", "ns_unedited", "said", "kl", "score"}: shares of prompts in
    percent with the right answer likelier, with intervals as {"mean", "ci95"}; said: P(right) of
    rewrites, in percent."""
    unedited = unedited[:len(results)]

    def success(results, group: str):
        shares = [100 * float(np.mean([right < wrong for right, wrong in r[group]]))
                  for r in results if r[group]]
        if not intervals:
            return float(np.mean(shares))
        return {"mean": float(np.mean(shares)),
                "ci95": mean_interval(np.array(shares), range(len(shares)), True)}

    return {"records": len(results), "es": success(results, "rewrite"),
            "ps": success(results, "paraphrase"), "ns": success(results, "neighborhood"),
            "ns_unedited": success(unedited, "neighborhood"),
            "said": 100 * float(np.mean([np.exp(-r["rewrite"][0][0]) for r in results])),
            "kl": float(np.mean([result["kl"] for result in results])), "score": score(results)}
