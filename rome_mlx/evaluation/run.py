"""Run a benchmark: one JSON file a case, each written whole, so that a run can be killed."""

import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from ..editing.layer_choice import LayerChoice, layer_to_edit
from ..editing.methods import ROME, find_method
from ..editing.requests import check_requests
from ..editing.sequence import EditSequence
from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.identity import Identity
from ..models.kept import Kept
from ..models.loading import describe
from ..moments.lookup import ensure_moments
from ..storage.run_store import Item, Run
from . import metrics, zsre
from .generation import References, generate, ngram_entropy
from .side_effects import drift, final_states, kept_states, neutral_tokens
from .summary import summary_of


def evaluate(model, tokenizer, cases, *, output: str | Path, layer: int | str = "auto",
             method: str = "rome", hyperparameters=None, moments=None, corpus=None,
             seed: int = 0, templates=None, sequential: int = 1, batch: int = 1,
             generations: int = 0, references: References | None = None,
             progress: bool = False) -> dict:
    """Edit, measure and take back every case; returns the summary, also in output/summary.json.

    Cases that have a file in `output` are not computed again. Under `mlx.launch` the ranks share
    the cases out, with the same result as one.

    Args:
        cases: of `read_counterfact` or `read_zsre`.
        method: a name; "none" measures the unedited model only.
        layer: "auto", by `layer_to_edit` without traces, or a number.
        moments, corpus: as for `locate_then_edit`.
        sequential: edits that follow one another before their cases are measured.
        batch: cases written by one edit.
        generations: how many cases, from the first, have free text measured (GE, and RS where
            there are `references`).

    Raises RomeError when `output` holds a run of another model or with other settings.
    """
    started, together = time.monotonic(), max(sequential, batch)
    editing = Editing(model, tokenizer, method, layer, hyperparameters, moments, corpus, templates,
                      seed, batch)
    for i in range(0, len(cases), together):
        check_requests(case.request for case in cases[i: i + together])
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
    summary = {**summary_of(results, {"method": method, "model": describe(model, tokenizer)},
                            benchmark), "layer_choice": editing.choice.to_json()}
    run.finish(summary)
    return {**summary, "seconds": time.monotonic() - started}


def _measured(cases, group: list[int], todo: list[int], editing: "Editing",
              measuring: "Measuring") -> dict[int, dict]:
    """What is measured of the cases `todo`, with all cases of the group written."""
    before = {i: measuring.before(cases[i]) for i in todo}
    neutral = editing.editor and measuring.neutral  # read before the model is edited
    found = {}
    with editing.edited([cases[i].request for i in group]):
        moved = neutral and {"kl_drift": measuring.kl(neutral)}
        for i in todo:
            after = measuring.now(cases[i]) | moved if moved else before[i]
            found[i] = {"pre": before[i], "post": after}
    return found


class Editing:
    """How cases are edited: the method, where, and with what; `settings` says all of it."""

    def __init__(self, model, tokenizer, method, layer, hyperparameters, moments, corpus,
                 templates, seed, batch):
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        self.editor = None if method == "none" else find_method(method)
        decoder, editor = Decoder(model), self.editor or ROME
        if batch > 1 and editor.one_by_one:
            raise RomeError(f"{method} writes one request at a time; use --sequential, or memit, "
                            "emmet or alphaedit")
        hp = self.editor and editor.resolve(hyperparameters, decoder)
        self.choice: LayerChoice = layer_to_edit(
            decoder, editor, layer=layer, hyperparameters=self.editor and hyperparameters)
        self.where = editor.layers_up_to(self.choice.layer, hp)
        found = None
        if self.editor is not None:
            if editor.needs_moments:
                layers = [self.where] if isinstance(self.where, int) else self.where
                found = ensure_moments(model, tokenizer, layers, moments, seed=seed, corpus=corpus)
            templates = templates or editor.kept_templates(model, tokenizer, seed, hp)
        self.options = {"moments": found, "seed": seed, "hyperparameters": hp,
                        "context_templates": templates}
        self.settings = {
            "method": method, "layers": self.where, "seed": seed, "context_templates": templates,
            "hyperparameters": hp and asdict(hp), "moments": found and found.used}

    @contextmanager
    def edited(self, requests):
        """The model with all the requests written, where there is an editor."""
        if self.editor is None:
            yield
            return
        if len(requests) <= self.batch:
            with self.editor.write(self.model, self.tokenizer,
                                   requests if self.batch > 1 else requests[0], self.where,
                                   **self.options).applied(self.model):
                yield
            return
        with EditSequence(self.model, self.tokenizer, self.editor.write, self.where,
                          **self.options) as sequence:
            for _ in sequence.write(requests, self.batch):
                pass
            yield


class Measuring:
    """Everything that is measured, without and with an edit."""

    def __init__(self, model, tokenizer, cases, generations: int, references: References | None,
                 seed: int):
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.benchmark = zsre if isinstance(cases[0], zsre.ZsreCase) else metrics
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
