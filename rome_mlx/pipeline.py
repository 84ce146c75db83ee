"""Locate the layer that decides a fact, edit it, verify: the whole way in one call."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

from .editing.edit import Edit
from .editing.layer_choice import LayerChoice, layer_to_edit
from .editing.methods import find_method
from .errors import RomeError
from .evaluation.verify import Verification, set_aside, verify
from .facts import EditRequest
from .models.decoder import Decoder
from .models.kept import Kept
from .moments.lookup import ensure_moments
from .tracing.decision import scaled_window
from .tracing.trace import KINDS, FactRuns, Trace, kept_trace


@dataclass(frozen=True)
class Result:
    """request; trace: of the fact before the edit; choice: the layer to edit and why; the edit,
    not applied; verification: before and after; source: the model and tokenizer it is of. Without
    verification there is none, and no trace where the layer did not hang on it."""

    request: EditRequest
    trace: Trace | None
    choice: LayerChoice
    edit: Edit
    verification: Verification | None
    source: tuple = field(repr=False, compare=False)

    @property
    def layer(self) -> int:
        """The layer that was edited, of several the last."""
        return self.choice.layer

    @property
    def decisive_layer(self) -> int | None:
        """What the fact's own trace says, None where it is not clear or was not made."""
        return self.trace and self.trace.decisive_layer

    def to_json(self) -> dict:
        """As `rome-mlx edit --json` writes it, but for seconds and adapter."""
        return {"request": asdict(self.request), "method": self.edit.method,
                "layer": self.layer, "layers": self.edit.layers,
                "decisive_layer": self.decisive_layer, "layer_choice": self.choice.to_json(),
                "hyperparameters": (asdict(self.edit.hyperparameters)
                                    if self.edit.hyperparameters else None),
                "moments": self.edit.moments, "details": self.edit.details,
                "trace": self.trace and self.trace.to_json(), "losses": self.edit.losses,
                **(self.verification.to_json() if self.verification else {})}

    def maps(self) -> list[Trace]:
        """The fact traced before the edit over all tokens: hidden states, MLPs, attentions."""
        model, tokenizer = self.source
        with set_aside(model, self.edit):
            runs = FactRuns(model, tokenizer, self.request.fact, noise=self.trace.noise,
                            samples=self.trace.samples)
            return [runs.trace(kind, self.trace.window, None, "all") for kind in KINDS]

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page: maps, layer, losses, before and after."""
        from .view.report import edit_report

        return edit_report([self], path)


def locate_then_edit(model, tokenizer, request: EditRequest, *,
                     paraphrases: Sequence[str] = (), neighbors: Sequence[str] = (),
                     **options) -> Result:
    """Trace the fact, choose the layer, edit, trace again. The model is left as it was.

    Args:
        paraphrases, neighbors: prompts that should follow the edit, and that should not.
        layer: "auto", by `layer_to_edit`, or a number; methods of several layers edit up to it.
        method: a name, such as "rome".
        moments: as for `rome`; missing ones are counted over `corpus`, as `second_moments` takes
            it, or the model's own samples, and cached.
        hyperparameters, context_templates, seed: the editor's; samples, noise: the trace's.
        verification: False writes the edit and measures nothing.
        progress: called with the name of each stage and what it found.
            Stages: trace, moments (while missing ones are counted), step, edit.
    """
    return locate_then_edit_all(model, tokenizer, [(request, paraphrases, neighbors)],
                                **options)[0]


def locate_then_edit_all(model, tokenizer, cases: Sequence[tuple], *, layer: int | str = "auto",
                         method: str = "rome", moments=None, corpus=None, hyperparameters=None,
                         context_templates=None, seed: int = 0, samples: int = 10, noise="s3",
                         verification: bool = True,
                         progress: Callable[[str, dict], None] | None = None) -> list[Result]:
    """Write many requests in one edit; a Result for each.

    cases: [(request, paraphrases, neighbors)], several for the methods that write many facts at
    once. Options as for `locate_then_edit`.
    """
    tell = progress or (lambda stage, found: None)
    decoder, editor = Decoder(model), find_method(method)
    resolved = editor.resolve(hyperparameters, decoder)
    requests = [request for request, _, _ in cases]
    if len(requests) > 1 and editor.one_by_one:
        raise RomeError(f"{method} writes one request at a time; use memit, emmet or alphaedit")
    if layer != "auto":
        decoder.check_layer(layer)
    choice = layer_to_edit(decoder, editor, layer=layer, hyperparameters=hyperparameters)
    found: list[Trace] = []
    if verification:
        kept = Kept(model, tokenizer)
        found = [kept_trace(kept, model, tokenizer, request.fact, kind="mlp", samples=samples,
                            noise=noise, window=scaled_window(len(decoder.layers)),
                            token_range="subject_last") for request in requests]
    tell("trace", {"traces": found, "choice": choice})
    where = editor.layers_up_to(choice.layer, resolved)
    if context_templates is None:
        context_templates = editor.kept_templates(model, tokenizer, seed, resolved)
    if editor.needs_moments:
        moments = ensure_moments(
            model, tokenizer, where, moments, seed=seed, corpus=corpus,
            report=lambda share, left: tell("moments", {"share": share, "left": left}))
    edit = editor.write(model, tokenizer, requests[0] if len(requests) == 1 else requests, where,
                        moments=moments, seed=seed, hyperparameters=resolved,
                        context_templates=context_templates,
                        report=lambda losses: tell("step", losses))
    tell("edit", {"edit": edit})
    if not verification:
        return [Result(request, one, choice, edit, None, (model, tokenizer))
                for request, one in zip_longest(requests, found)]
    checks = [verify(model, tokenizer, edit, request=request, paraphrases=paraphrases,
                     neighbors=neighbors, samples=samples, noise=noise, side_effects=i == 0,
                     before=found[i])
              for i, (request, paraphrases, neighbors) in enumerate(cases)]
    numbers = [{name: value for name, value in check.to_json().items() if name != "retrace"}
               for check in checks]
    edit.numbers = numbers[0] if len(numbers) == 1 else {"checks": numbers}
    return [Result(request, one, choice, edit, check, (model, tokenizer))
            for request, one, check in zip(requests, found, checks, strict=True)]
