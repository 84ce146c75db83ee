"""Run a benchmark: one JSON file a case, each written whole, so that a run can be killed."""

import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from ..editing.hyperparameters import hyperparameters as resolve
from ..editing.methods import ONE_BY_ONE, WITHOUT_MOMENTS, layers_up_to, templates_of
from ..editing.methods import method as find_method
from ..editing.requests import check_requests
from ..editing.sequence import in_sequence
from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.identity import fingerprint
from ..models.loading import describe
from ..moments.lookup import ensure_moments
from ..pipeline import own_layer, usual_layer
from ..storage.ranks import gathered
from . import metrics, zsre
from .generation import References, generate, ngram_entropy
from .side_effects import drift, final_states, neutral_tokens
from .store import RunDirectory
from .summary import summary_of
from .unedited import Unedited


def evaluate(model, tokenizer, cases, *, output: str | Path, layer: int | str = "auto",
             method: str = "rome", hyperparameters=None, moments=None, seed: int = 0,
             templates=None, sequential: int = 1, batch: int = 1, generations: int = 0,
             references: References | None = None, progress: bool = False) -> dict:
    """Edit, measure and take back every case; returns the summary, also in output/summary.json.

    Cases that have a file in `output` are not computed again. cases: of `read_counterfact` or
    `read_zsre`; method "none" measures the unedited model only; layer: "auto" for where the
    method's preset for this model ends, else the model's usual one; sequential: edits that follow
    one another before their cases are measured; batch: cases written by one edit; generations: how
    many cases, from the first, have free text measured (GE, and RS where there are `references`).
    Under `mlx.launch` the ranks share the cases out, with the same result as one.
    Raises RomeError when `output` holds a run with other settings.
    """
    started, together = time.monotonic(), max(sequential, batch)
    groups = [cases[i: i + together] for i in range(0, len(cases), together)]
    editing = Editing(model, tokenizer, method, layer, hyperparameters, moments, templates, seed,
                      batch, progress)
    for group in groups:
        check_requests(case.request for case in group)
    measuring = Measuring(model, tokenizer, cases, generations, references, seed)
    ranks = mx.distributed.init()
    directory = RunDirectory(output, {
        **editing.settings, "sequential": sequential, "batch": batch, "generations": generations,
        "references": references and str(references.directory),
        "model": describe(model, tokenizer)}, ranks)
    mine = {}
    for number in tqdm(range(ranks.rank(), len(groups), ranks.size()), file=sys.stderr,
                       disable=not progress or ranks.rank() > 0,
                       unit="case" if together == 1 else "group"):
        mine[number] = _group(groups[number], editing, measuring, directory)
    found = gathered(ranks, mine)
    results = [result for number in range(len(groups)) for result in found[number]]
    summary = summary_of(results, {"method": method, "model": describe(model, tokenizer)},
                         measuring.benchmark)
    if ranks.rank() == 0:
        directory.finish(cases, results, summary)
    return {**summary, "seconds": time.monotonic() - started}


def _group(cases, editing: "Editing", measuring: "Measuring", directory: RunDirectory) -> list:
    """The results of cases that are edited together, those that have no file computed."""
    ids = [case.case_id for case in cases]
    results = [directory.read(case, ids, measuring.benchmark.case_measures) for case in cases]
    todo = [i for i, result in enumerate(results) if result is None]
    if not todo:
        return results
    before = {i: measuring.before(cases[i]) for i in todo}
    neutral = editing.editor and measuring.neutral  # read before the model is edited
    with editing.edited([case.request for case in cases]):
        moved = neutral and {"kl_drift": measuring.kl(neutral)}
        for i in todo:
            after = measuring.now(cases[i]) | moved if moved else before[i]
            results[i] = {"case_id": ids[i], "group": ids, "request": asdict(cases[i].request),
                          "pre": before[i], "post": after}
            directory.write(cases[i], results[i])
    return results


class Editing:
    """How cases are edited: the method, where, and with what; `settings` says all of it."""

    def __init__(self, model, tokenizer, method, layer, hyperparameters, moments, templates, seed,
                 batch, progress):
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        self.editor = None if method == "none" else find_method(method)
        decoder = Decoder(model)
        if batch > 1 and method in ONE_BY_ONE:
            raise RomeError(f"{method} writes one request at a time; use --sequential, or memit, "
                            "emmet or alphaedit")
        hp = None
        if self.editor is not None:
            hp = resolve(hyperparameters, method, decoder)
            if layer == "auto":
                layer = own_layer(decoder, hyperparameters, hp)
        if layer in ("auto", None):
            layer = usual_layer(decoder)
        self.where = decoder.check_layer(layer)
        if self.editor is not None:
            self.where = layers_up_to(method, layer, hp)
            if method not in WITHOUT_MOMENTS:
                layers = [self.where] if isinstance(self.where, int) else self.where
                moments = ensure_moments(model, tokenizer, layers, moments, seed=seed,
                                         progress=progress)
            templates = templates or templates_of(method, model, tokenizer, seed, hp)
        self.options = {"moments": moments, "seed": seed, "hyperparameters": hp,
                        "context_templates": templates}
        self.settings = {
            "method": method, "layers": self.where, "seed": seed, "context_templates": templates,
            "hyperparameters": hp and asdict(hp), "moments": _label(moments),
            "fingerprint": fingerprint(decoder.module(decoder.dense_layers[0], "down"))}

    @contextmanager
    def edited(self, requests):
        """The model with all the requests written, where there is an editor."""
        if self.editor is None:
            yield
            return
        steps = in_sequence(self.model, self.tokenizer, requests, self.editor, self.where,
                            batch=self.batch, **self.options)
        try:
            for _ in range(-(-len(check_requests(requests)) // self.batch)):
                next(steps)
            yield
        finally:
            steps.close()


class Measuring:
    """Everything that is measured, without and with an edit."""

    def __init__(self, model, tokenizer, cases, generations: int, references: References | None,
                 seed: int):
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.benchmark = zsre if isinstance(cases[0], zsre.ZsreCase) else metrics
        self.generating = {case.case_id for case in cases[:generations] if case.generation}
        self.references = references
        self.unedited = Unedited(model, tokenizer)

    @cached_property
    def neutral(self) -> tuple[list, list]:
        """Neutral text, and what the model makes of it as it is when this is first read."""
        rows = neutral_tokens(self.model, self.tokenizer)
        return rows, final_states(self.model, rows)

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


def _label(moments) -> str:
    if moments is None:
        return "shipped or cached"
    return str(moments) if isinstance(moments, str | Path) else type(moments).__name__
