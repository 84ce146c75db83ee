"""Run a benchmark: one JSON file a case, each written whole, so that a run can be killed."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from ..editing.requests import check_requests
from ..models.identity import Identity
from ..models.kept import Kept
from ..models.loading import describe
from ..storage.run_store import Item, Run
from . import metrics, questions
from .case_edits import Editing
from .further import measure_further, with_further
from .generation import References, generate, ngram_entropy
from .probes import find_probe
from .side_effects import drift, final_states, kept_states, neutral_tokens
from .summary import summary_of


def evaluate(model, tokenizer, cases, *, output: str | Path, layer: int | str = "auto",
             method: str = "rome", hyperparameters=None, moments=None, corpus=None,
             seed: int = 0, templates=None, sequential: int = 1, batch: int = 1,
             generations: int = 0, references: References | None = None,
             measures: Sequence[str] = (), progress: bool = False) -> dict:
    """Edit, measure and take back every case; returns the summary, also in output/summary.json.

    Cases that have a file in `output` are not computed again. Under `mlx.launch` the ranks share
    the cases out, with the same result as one. The edits are kept in output/edits, and a run can
    be measured on by further `measures` without editing again.

    Args:
        cases: of `read_counterfact`, `read_zsre`, `read_qaedit` or `read_mquake`.
        method: a name; "none" measures the unedited model only, "context" says the fact before
            whatever is asked and edits nothing.
        layer: "auto", by `layer_to_edit` without traces, or a number.
        moments, corpus: as for `locate_then_edit`.
        sequential: edits that follow one another before their cases are measured.
        batch: cases written by one edit.
        generations: how many cases, from the first, have free text measured (GE, and RS where
            there are `references`).
        measures: names of PROBES, such as "wild".

    Raises RomeError when `output` holds a run of another model or with other settings.
    """
    started, together = time.monotonic(), max(sequential, batch)
    for name in measures:
        find_probe(name)
    editing = Editing(model, tokenizer, method, layer, hyperparameters, moments, corpus, templates,
                      seed, batch, Path(output) / "edits")
    for i in range(0, len(cases), together):
        check_requests(one for case in cases[i: i + together] for one in case.requests)
    measuring = Measuring(model, tokenizer, cases, generations, references, seed)
    run = Run(output, {
        **editing.settings, "sequential": sequential, "batch": batch, "generations": generations,
        "references": references and str(references.directory),
        "model": describe(model, tokenizer)}, Identity.of(model))
    benchmark, ids = measuring.benchmark, [case.case_id for case in cases]
    items = [Item(f"case_{case.case_id}", {
        "case_id": case.case_id, "group": ids[i // together * together:][:together],
        "request": asdict(case.request)}) for i, case in enumerate(cases)]
    results = run.map(
        items, lambda group, todo: _measured(cases, group, todo, editing, measuring),
        together=together, progress=progress, unit="case" if together == 1 else "group",
        check=lambda result: benchmark.case_measures(result["post"], result["pre"]))
    groups = [range(i, min(i + together, len(cases))) for i in range(0, len(cases), together)]
    for name in measures:
        measure_further(name, cases, groups, run.path, editing, measuring.unedited, progress)
    results = with_further(run.path, results)
    summary = {**summary_of(results, {"method": method, "model": describe(model, tokenizer)},
                            benchmark), "layer_choice": editing.choice.to_json()}
    run.finish(summary)
    if run.group.rank() == 0:
        editing.tidy()
    return {**summary, "seconds": time.monotonic() - started}


def _measured(cases, group: list[int], todo: list[int], editing: "Editing",
              measuring: "Measuring") -> dict[int, dict]:
    """What is measured of the cases `todo`, with all cases of the group written."""
    before = {i: measuring.before(cases[i]) for i in todo}
    neutral = editing.editor and measuring.neutral  # read before the model is edited
    found = {}
    with editing.edited([cases[i] for i in group]):
        moved = {"kl_drift": measuring.kl(neutral)} if neutral else {}
        for i in todo:
            after = before[i] if editing.method == "none" else measuring.now(
                editing.asked(cases[i])) | moved
            found[i] = {"pre": before[i], "post": after}
    return found


class Measuring:
    """Everything that is measured, without and with an edit."""

    def __init__(self, model, tokenizer, cases, generations: int, references: References | None,
                 seed: int):
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.benchmark = (questions if isinstance(cases[0], questions.QuestionCase)
                          else metrics)
        self.generating = {case.case_id for case in cases[:generations] if case.generation}
        self.references = references
        self.unedited = Kept(model, tokenizer)

    @cached_property
    def neutral(self) -> tuple[list, list]:
        """Neutral text, and what the unedited model makes of it."""
        rows = neutral_tokens(self.model, self.tokenizer)
        return rows, kept_states(self.unedited, self.model, rows)

    def kl(self, neutral) -> float:
        """KL(unedited ‖ now) of the next token on neutral text, in nats."""
        rows, before = neutral
        return drift(self.model, rows, before, final_states(self.model, rows))["kl"]

    def before(self, case) -> dict:
        """Of the unedited model, computed or remembered."""
        prompt, about = case.request.text, asdict(case)
        scores = self.unedited.get("scores", about, prompt, lambda: self._scores(case))
        texts = None
        if case.case_id in self.generating:
            texts = self.unedited.get("texts", {**about, "seed": self.seed}, prompt,
                                      lambda: self._texts(case))
        return scores | self._on_texts(case, texts)

    def now(self, case) -> dict:
        """Of the model as it is."""
        texts = self._texts(case) if case.case_id in self.generating else None
        return self._scores(case) | self._on_texts(case, texts)

    def _scores(self, case) -> dict:
        return self.benchmark.case_scores(self.model, self.tokenizer, case)

    def _texts(self, case) -> list[str]:
        return generate(self.model, self.tokenizer, case.generation, self.seed + case.case_id)

    def _on_texts(self, case, texts: list[str] | None) -> dict:
        if texts is None:
            return {}
        score = self.references and self.references.score(texts, case)
        return {"texts": texts, "ngram_entropy": ngram_entropy(texts),
                **({} if score is None else {"reference_score": score})}
