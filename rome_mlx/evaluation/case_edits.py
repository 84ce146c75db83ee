"""How a benchmark's cases are edited, and where a run keeps its edits."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..editing.layer_choice import LayerChoice, layer_to_edit
from ..editing.methods import ROME, find_method
from ..editing.saved import load_edit
from ..editing.sequence import EditSequence
from ..errors import RomeError
from ..models.decoder import Decoder
from ..moments.lookup import ensure_moments

#: in place of a method: the model as it is, and with the fact said before whatever is asked
UNEDITED = ("none", "context")


class Editing:
    """How cases are edited: the method, where, and with what; `settings` says all of it.

    directory: where the edits are kept, one directory for the cases that are edited together.
    """

    def __init__(self, model, tokenizer, method, layer, hyperparameters, moments, corpus,
                 templates, seed, batch, directory: Path):
        self.model, self.tokenizer, self.method, self.batch = model, tokenizer, method, batch
        self.directory = directory
        self.editor = None if method in UNEDITED else find_method(method)
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
                found = ensure_moments(model, tokenizer, self.where, moments, seed=seed,
                                       corpus=corpus)
            templates = templates or editor.kept_templates(model, tokenizer, seed, hp)
        self.options = {"moments": found, "seed": seed, "hyperparameters": hp,
                        "context_templates": templates}
        self.settings = {
            "method": method, "layers": self.where, "seed": seed, "context_templates": templates,
            "hyperparameters": hp and asdict(hp), "moments": found and found.used}

    def asked(self, case):
        """A case as it is asked after the edit: in context, with the fact said before."""
        return case.told() if self.method == "context" else case

    def kept_edit(self, cases: Sequence):
        """The edit of these cases, computed where there is none yet; None without an editor."""
        if self.editor is None:
            return None
        directory = self.directory / str(cases[0].case_id)
        if not directory.exists():
            with self.edited(cases):
                pass
        return load_edit(directory)

    @contextmanager
    def edited(self, cases: Sequence) -> Iterator[None]:
        """The model with all that these cases request written, where there is an editor; what is
        computed is kept."""
        if self.editor is None:
            yield
            return
        directory = self.directory / str(cases[0].case_id)
        requests = [request for case in cases for request in case.requests]
        if len(requests) == 1 or (len(cases) <= self.batch and not self.editor.one_by_one):
            edit = self.editor.write(self.model, self.tokenizer,
                                     requests[0] if self.editor.one_by_one else requests,
                                     self.where, **self.options)
            _keep(edit, directory)
            with edit.applied(self.model):
                yield
            return
        with EditSequence(self.model, self.tokenizer, self.editor.write, self.where,
                          **self.options) as sequence:
            for _ in sequence.write(requests, self.batch):
                pass
            _keep(sequence.edit(), directory)
            yield

    def tidy(self) -> None:
        """Remove what killed processes left half-written."""
        for left in self.directory.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)


def _keep(edit, directory: Path) -> None:
    """Save an edit, unless it is there: another process of the same run may come first."""
    try:
        if not directory.exists():
            edit.save(directory)
    except RomeError:
        if not directory.exists():
            raise
