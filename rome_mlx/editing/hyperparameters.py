"""What the ROME paper's code lets one choose, under its names, and presets by model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import RomeError


@dataclass(frozen=True)
class Hyperparameters:
    """Of the value optimisation and the update (ROME paper, section 3.1 and appendix E.5).

    layer: the preset's layer, or None; v_num_grad_steps: losses computed, one more than updates;
    v_lr: Adam's; v_weight_decay: of ‖δ‖/‖v0‖²; clamp_norm_factor: ‖δ‖ at most this times ‖v0‖;
    kl_factor: of KL(new ‖ initial) on "{subject} is a"; v_stop: the loss that ends the
    optimisation; ridge: added to C's diagonal, as a fraction of its mean.
    """

    layer: int | None = None
    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    v_stop: float = 0.05
    ridge: float = 0.0

    def __post_init__(self):
        if self.v_num_grad_steps < 1:
            raise RomeError(f"v_num_grad_steps is {self.v_num_grad_steps}; give 1 or more")
        for name in ("v_lr", "clamp_norm_factor"):
            if not getattr(self, name) > 0:
                raise RomeError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("v_weight_decay", "kl_factor", "v_stop", "ridge"):
            if not getattr(self, name) >= 0:
                raise RomeError(f"{name} is {getattr(self, name)}; give 0 or more")


#: GPT-2 XL's, from the authors' code
PUBLISHED = Hyperparameters(layer=17)


def hyperparameters(given=None) -> Hyperparameters:
    """None or "published" for the published ones, a dict of some of them, or a dataclass."""
    if given is None or given == "published":
        return PUBLISHED
    if isinstance(given, Hyperparameters):
        return given
    if isinstance(given, Mapping):
        known = {f.name for f in dataclasses.fields(Hyperparameters)}
        if unknown := sorted(set(given) - known):
            raise RomeError(f"unknown hyperparameters {', '.join(unknown)}; "
                            f"choose from {', '.join(sorted(known))}")
        try:
            return dataclasses.replace(PUBLISHED, **given)
        except TypeError as error:
            raise RomeError(f"hyperparameters {dict(given)}: {error}; give numbers") from error
    raise RomeError(f"hyperparameters {given!r}: give 'published', a dictionary or a "
                    "Hyperparameters")
