"""The layer to edit: the one rule, for every command and call.

It is not the decisive layer, which is what a trace says of a fact. The layer that traces best and
the one that edits best are correlated, not the same (Hase et al. 2301.04213): on two models editing
where a fact's own trace points did worse than editing at one layer of the model, whichever way it
was traced (docs/layers.md). So the trace explains, and the layer is the model's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass

import numpy as np

from ..models.decoder import Decoder
from ..models.identity import Identity, stored_for
from ..storage.files import write_json
from ..storage.places import cache_directory, data_path
from ..tracing.decision import Decision, decide, first_candidate, scaled_window
from ..tracing.trace import Trace
from .calibrated import is_calibration, is_path
from .hyperparameters import depth_layer, nearest_dense
from .method import Method

#: facts that a profile has to be averaged over before it names a layer
ENOUGH_FACTS = 20


@dataclass(frozen=True)
class LayerChoice:
    """layer: the layer to edit, of several the last; how: given, calibration, profile or depth;
    reason: in words."""

    layer: int
    how: str
    reason: str

    def to_json(self) -> dict:
        return asdict(self)


def layer_to_edit(decoder: Decoder, method: Method, *, layer: int | str | None = "auto",
                  hyperparameters=None) -> LayerChoice:
    """The layer to edit, and why.

    Args:
        layer: a number, or "auto" or None to have it chosen.
        hyperparameters: as the caller gave them to `Method.resolve`, before they are resolved.

    In this order: the layer given, or named by the hyperparameters given; what calibration found
    for this model and method, of which a shipped preset is one; the model's averaged profile,
    where it is clear; by depth.
    Raises RomeError for a layer that the model does not have.
    """
    if layer not in ("auto", None):
        return LayerChoice(decoder.check_layer(layer), "given", "as asked")
    resolved = method.resolve(hyperparameters, decoder)
    if (own := method.layer_of(resolved)) is not None:
        decoder.check_layer(own)
        if _names_layers(hyperparameters):
            return LayerChoice(own, "given", "named by the hyperparameters")
        return LayerChoice(own, "calibration", f"the preset for this model, {resolved.preset}")
    return _profiled(decoder) or LayerChoice(
        depth_layer(decoder), "depth", "no calibration and no profile of this model: 15 % of the "
        "depth; rome-mlx calibrate finds its layer")


def layers_to_edit(decoder: Decoder, method: Method, layer: int | str | None = "auto",
                   hyperparameters=None) -> int | list[int] | None:
    """What to give a method as its layer, or layers: by the one rule."""
    choice = layer_to_edit(decoder, method, layer=layer, hyperparameters=hyperparameters)
    return method.layers_up_to(choice.layer, method.resolve(hyperparameters, decoder))


def decisive(traces: Sequence[Trace]) -> Decision | None:
    """The decision of one trace, or of several on average; None where there are none."""
    if not traces:
        return None
    effects = np.mean([trace.deciding_effect for trace in traces], axis=0)
    total = float(np.mean([trace.total_effect for trace in traces]))
    return decide(effects, total, first_candidate("mlp", scaled_window(len(effects))))


def _names_layers(given) -> bool:
    """Whether what a caller gave as hyperparameters says itself which layers."""
    if is_path(given) or is_calibration(given):
        return True
    given = asdict(given) if is_dataclass(given) else given
    return isinstance(given, Mapping) and any(given.get(name) is not None
                                              for name in ("layer", "layers"))


def _profiled(decoder: Decoder) -> LayerChoice | None:
    profile = stored_profile(decoder)
    if profile is None or not profile["clear"]:
        return None
    return _dense(decoder, LayerChoice(
        profile["decisive_layer"], "profile", f"averaged over {profile['facts_used']} facts this "
        "layer decides"))


def _dense(decoder: Decoder, choice: LayerChoice) -> LayerChoice:
    """The choice, moved to the nearest layer that can be edited: mixtures of experts cannot."""
    layer = nearest_dense(decoder, choice.layer)
    if layer == choice.layer:
        return choice
    return LayerChoice(layer, choice.how, f"{choice.reason}; layer {choice.layer} is a mixture "
                       f"of experts, and {layer} is the nearest dense one")


def stored_profile(decoder: Decoder) -> dict | None:
    """The averaged effects of this model over the most facts, shipped or kept by `locate`: as
    `AverageEffects.to_json` has them. None where there are none."""
    found = []
    for path, profile in stored_for(decoder.model, (*data_path().glob("profile-*.json"),
                                                    *_profiles().glob("*.json"))):
        try:
            if profile["facts_used"] >= ENOUGH_FACTS:
                found.append((profile["facts_used"], profile["clear"], str(path), profile))
        except (KeyError, TypeError):
            continue
    return max(found)[-1] if found else None


def profile_decision(decoder: Decoder) -> Decision | None:
    """What the model's profile says of the decisive layer; None where there is no profile."""
    profile = stored_profile(decoder)
    if profile is None:
        return None
    return Decision(profile["decisive_layer"], float("nan"), profile["clear"],
                    f"averaged over {profile['facts_used']} facts, {profile['reason']}")


def keep_profile(effects) -> bool:
    """Keep average effects in the cache, as this model's profile; whether they are over enough
    facts for that."""
    if effects.facts_used < ENOUGH_FACTS:
        return False
    about = effects.to_json()
    name = Identity.from_json(about["identity"]).digest
    _profiles().mkdir(parents=True, exist_ok=True)
    write_json(_profiles() / f"{name}-{effects.facts_used}.json", about)
    return True


def _profiles():
    return cache_directory() / "profiles"
