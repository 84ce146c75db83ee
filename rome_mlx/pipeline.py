"""Locate the layer that decides a fact, edit it, verify: the whole way in one call."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from .data_files import data_path
from .decoder import Decoder
from .editing.edit import Edit
from .editing.methods import method as find_method
from .facts import EditRequest
from .fingerprint import fingerprint, same
from .moments.lookup import ensure_moments
from .tracing.decision import scaled_window
from .tracing.trace import Trace, trace
from .verify import Verification, verify


@dataclass(frozen=True)
class LayerChoice:
    """layer; how: given, trace, profile or preset; reason: one sentence."""

    layer: int
    how: str
    reason: str


@dataclass(frozen=True)
class Result:
    """trace: of the fact before the edit; layer and how it was chosen; the edit, not applied;
    verification: before and after."""

    trace: Trace
    choice: LayerChoice
    edit: Edit
    verification: Verification

    @property
    def layer(self) -> int:
        return self.choice.layer

    def to_json(self) -> dict:
        """As `rome-mlx edit --json` writes it, but for seconds and adapter."""
        return {"request": asdict(self.edit.request), "method": self.edit.method,
                "layer": self.layer, "layer_choice": asdict(self.choice),
                "trace": self.trace.to_json(), "losses": self.edit.losses,
                **self.verification.to_json()}


def locate_then_edit(model, tokenizer, request: EditRequest, *, layer: int | str = "auto",
                     method: str = "rome", moments=None, hyperparameters=None,
                     context_templates=None, seed: int = 0, paraphrases: Sequence[str] = (),
                     neighbors: Sequence[str] = (), samples: int = 10, noise="s3",
                     progress: Callable[[str, dict], None] | None = None) -> Result:
    """Trace the fact, choose the layer, edit, trace again. The model is left as it was.

    layer: "auto", by the fact's own trace where it is clear and the model's stored profile where
    it is not, or a number; moments: as for `rome`; missing ones are made from the model's own
    samples and cached. progress: called with the name of each stage and what it found.
    """
    tell = progress or (lambda stage, found: None)
    decoder, edit_with = Decoder(model), find_method(method)
    if layer != "auto":
        decoder.check_layer(layer)
    found = trace(model, tokenizer, request.fact, kind="mlp", samples=samples, noise=noise,
                  window=scaled_window(len(decoder.layers)), token_range="subject_last")
    choice = (choose_layer(decoder, found) if layer == "auto"
              else LayerChoice(layer, "given", "as asked"))
    tell("trace", {"trace": found, "choice": choice})
    moments = ensure_moments(model, tokenizer, [choice.layer], moments, seed=seed,
                             progress=progress is not None)
    edit = edit_with(model, tokenizer, request, choice.layer, moments=moments, seed=seed,
                     hyperparameters=hyperparameters, context_templates=context_templates,
                     report=lambda losses: tell("step", losses))
    tell("edit", {"edit": edit})
    check = verify(model, tokenizer, edit, paraphrases=paraphrases, neighbors=neighbors,
                   samples=samples, noise=noise)
    edit.numbers = {name: value for name, value in check.to_json().items() if name != "retrace"}
    return Result(found, choice, edit, check)


def choose_layer(decoder: Decoder, found: Trace) -> LayerChoice:
    """The fact's own decisive layer where it is clear, else the model's, else a rule of depth."""
    decision = found.decision
    if decision.clear:
        return LayerChoice(decision.layer, "trace", f"this fact's trace is clear: "
                                                    f"{decision.reason}")
    profile = stored_profile(decoder)
    if profile is not None:
        return LayerChoice(profile["decisive_layer"], "profile",
                           f"this fact's trace is not clear ({decision.reason}); averaged over "
                           f"{profile['facts_used']} facts this layer decides")
    layer = round(len(decoder.layers) * 0.15)
    return LayerChoice(layer, "preset", f"this fact's trace is not clear ({decision.reason}) and "
                       "there is no profile of this model: the layer at 15 % of the depth; "
                       "rome-mlx locate makes a profile")


def stored_profile(decoder: Decoder) -> dict | None:
    """The averaged effects that come with the package for this model, if there are any."""
    for path in sorted(data_path().glob("profile-*.json")):
        profile = json.loads(path.read_text("utf-8"))
        module = decoder.module(0, "down")
        if same(fingerprint(module), profile["fingerprint"]):
            return profile
    return None
