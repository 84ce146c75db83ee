"""Average indirect effects over many facts (ROME paper, section 2.2, figures 2 and 3).

One result a fact; facts that the model does not know are skipped and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..facts import Fact
from ..intervals import ends, resampled
from ..models.decoder import Decoder
from ..models.identity import Identity
from ..models.probabilities import first_choice
from ..storage.run_store import Item, Run
from .corruption import Corruption, corruption
from .decision import Decision, decide, first_candidate, scaled_window
from .trace import KINDS, FactRuns, Trace, check_values

TOKEN_CLASSES = ("subject_first", "subject_middle", "subject_last", "first_subsequent",
                 "further", "last")


@dataclass(frozen=True)
class Effect:
    """An average over facts with its 95 % bootstrap interval.

    mean: (layers,) or a number; ci95: (layers, 2) or (2,); facts: how many it is over.
    """

    mean: np.ndarray
    ci95: np.ndarray
    facts: int

    def to_json(self) -> dict:
        return {"mean": self.mean.tolist(), "ci95": self.ci95.tolist()}


@dataclass(frozen=True)
class AverageEffects:
    """Indirect effects of every fact that was used, averaged on demand.

    records: of the facts used, in order, as they are stored: clean_prob, corrupted_prob,
    `scores[kind][token_class]` and `deciding`, each a list over layers; skipped: {"subject",
    "reason"} of the others; settings: what the run was asked for, with the noise level; identity:
    the model's.
    """

    settings: dict
    identity: Identity
    records: list[dict] = field(repr=False)
    skipped: list[dict] = field(repr=False)

    @property
    def layers(self) -> int:
        return self.settings["layers"]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.settings["kinds"])

    @property
    def facts_used(self) -> int:
        return len(self.records)

    def aie(self, kind: str, token_class: str = "subject_last") -> Effect:
        """Average indirect effect of each layer at one class of tokens.

        Facts without a token of the class (a one-token subject has no first and middle) do not
        count; where there are none, the mean is NaN.
        """
        if kind not in self.kinds or token_class not in TOKEN_CLASSES:
            raise RomeError(f"no effects of {kind!r} at {token_class!r}; kinds are "
                            f"{', '.join(self.kinds)}, classes {', '.join(TOKEN_CLASSES)}")
        rows = [np.array(record["scores"][kind][token_class]) - record["corrupted_prob"]
                for record in self.records if token_class in record["scores"][kind]]
        return _average(np.array(rows).reshape(-1, self.layers))

    @property
    def ate(self) -> Effect:
        """Average total effect: clean minus corrupted probability of the answer."""
        return _average(self._column("clean_prob") - self._column("corrupted_prob"))

    def thirds(self, kind: str, token_class: str = "subject_last") -> dict[str, float]:
        """Mean AIE over the early, middle and late third of the layers."""
        parts = np.array_split(self.aie(kind, token_class).mean, 3)
        return {name: float(part.mean())
                for name, part in zip(("early", "middle", "late"), parts, strict=True)}

    @property
    def decision(self) -> Decision:
        """The layer that decides on average, by the rule that decides for one fact."""
        effect = np.mean([np.array(record["deciding"]) - record["corrupted_prob"]
                          for record in self.records], axis=0)
        return decide(effect, float(self.ate.mean),
                      first_candidate("mlp", scaled_window(self.layers)))

    @property
    def decisive_layer(self) -> int | None:
        """The layer of the decision, None where it is not clear."""
        return self.decision.layer if self.decision.clear else None

    def _column(self, name: str) -> np.ndarray:
        return np.array([record[name] for record in self.records])

    def to_json(self) -> dict:
        """As `rome-mlx locate --json` writes it."""
        decision = self.decision
        return {
            **self.settings, "identity": self.identity.to_json(),
            "facts_used": self.facts_used, "facts_skipped": self.skipped,
            "clean_prob": float(self._column("clean_prob").mean()),
            "corrupted_prob": float(self._column("corrupted_prob").mean()),
            "ate": self.ate.to_json(),
            "aie": {kind: {name: effect.to_json() for name in TOKEN_CLASSES
                           if (effect := self.aie(kind, name)).facts} for kind in self.kinds},
            "thirds": {kind: self.thirds(kind) for kind in self.kinds},
            "decisive_layer": self.decisive_layer, "clear": decision.clear,
            "reason": decision.reason,
        }

    def plot(self, path):
        """Draw AIE by layer, one panel per kind and one line per token class."""
        from ..view.plot import plot_average

        return plot_average(self, path)


def average_effects(model, tokenizer, facts: Sequence[Fact], kinds: Sequence[str] = KINDS, *,
                    samples: int = 10, noise: str | float = "s3", window: int = 10,
                    replace: bool = False, noise_seed: int = 1, token_range: str = "all",
                    subjects: Sequence[str] | None = None, output: str | Path | None = None,
                    progress: bool = False, memory: float = 1.0) -> AverageEffects:
    """Trace every fact and average: AIE by kind, token class and layer.

    A fact with an attribute is skipped when the model's first choice, stripped, is not it.
    subjects: those that set `s` noise levels, see `corruption`; token_range: "all", or
    "subject_last", many times faster, with that class alone; output: a directory with a file a
    fact, where a run that was stopped goes on. The other options are those of `trace`.
    Under `mlx.launch` the ranks share the facts out, with the same result as one.

    Raises RomeError for values out of range, an output directory of another run, and when the
    model knows none of the facts.
    """
    for kind in kinds:
        check_values(kind, samples, window, None)
    if not facts or not kinds or token_range not in ("all", "subject_last"):
        raise RomeError("give at least one fact and one kind, and the token range all or "
                        "subject_last")
    decoder = Decoder(model)
    rule = corruption(decoder, tokenizer, noise, subjects=subjects, replace=replace)
    settings = {
        "kinds": list(kinds), "layers": len(decoder.layers), "samples": samples,
        "noise": rule.rule, "noise_level": rule.level, "replace": replace,
        "noise_seed": noise_seed, "window": window, "token_range": token_range,
    }
    identity = Identity.of(model)
    items = [Item(f"fact_{i}", {"prompt": fact.prompt, "subject": fact.subject})
             for i, fact in enumerate(facts)]
    records = Run(output, settings, identity).map(
        items, lambda group, todo: {i: _record(model, tokenizer, facts[i], settings, rule, memory)
                                    for i in todo}, progress=progress, unit="fact")
    used = [r for r in records if "reason" not in r]
    skipped = [{"subject": r["subject"], "reason": r["reason"]} for r in records if "reason" in r]
    if not used:
        raise RomeError(f"the model knows none of the {len(facts)} facts "
                        f"({skipped[0]['subject']!r}: {skipped[0]['reason']}); give others")
    return AverageEffects(settings, identity, used, skipped)


def token_classes(tokens: int, begin: int, end: int) -> list[str]:
    """The class of each prompt position; "before" for those before the subject [begin, end).

    Each token has one class: a one-token subject is its last token, and a subject that ends the
    prompt is `subject_last`.
    """
    classes = ["before"] * begin + ["subject_middle"] * (end - begin) + ["further"] * (tokens - end)
    for position, name in ((tokens - 1, "last"), (end, "first_subsequent"),
                           (begin, "subject_first"), (end - 1, "subject_last")):
        if position < tokens and (name != "first_subsequent" or position < tokens - 1):
            classes[position] = name
    return classes


def _record(model, tokenizer, fact: Fact, settings: dict, rule: Corruption, memory) -> dict:
    answer = tokenizer.decode([first_choice(model, tokenizer, fact.text)])
    if fact.attribute is not None and answer.strip() != fact.attribute.strip():
        return {"answer": answer, "reason": f"the model says {answer!r}, not {fact.attribute!r}"}
    runs = FactRuns(model, tokenizer, fact, samples=settings["samples"], noise=rule,
                    noise_seed=settings["noise_seed"], memory=memory)
    kinds = sorted(settings["kinds"], key=lambda kind: kind != "mlp")  # which may decide as well
    traces = [runs.trace(kind, settings["window"], None, settings["token_range"])
              for kind in kinds]
    return {"answer": answer, "clean_prob": traces[0].clean_prob,
            "corrupted_prob": traces[0].corrupted_prob,
            "scores": {trace.kind: _by_class(trace) for trace in traces},
            "deciding": np.array(traces[-1].deciding, np.float64).tolist()}


def _by_class(trace: Trace) -> dict[str, list[float]]:
    classes = token_classes(len(trace.input_ids), *trace.subject_range)
    names = np.array([classes[position] for position in trace.positions])
    return {name: trace.scores[names == name].mean(axis=0, dtype=np.float64).tolist()
            for name in TOKEN_CLASSES if name in names}


def _average(rows: np.ndarray) -> Effect:
    """Mean over rows (facts, ...) and the 2.5 and 97.5 percentiles of resampled facts' means."""
    facts = len(rows)
    if not facts:
        nothing = np.full(rows.shape[1:], np.nan)
        return Effect(nothing, np.stack([nothing, nothing], axis=-1), 0)
    return Effect(rows.mean(axis=0), ends(resampled(rows)), facts)
