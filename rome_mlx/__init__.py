"""Locate, edit and verify facts in language models on Apple MLX."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# MLX reads it at its first product: on CUDA and on an M5 it would cut float32's 24 bits to 11.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

from .accel import blas  # noqa: F401  a fast BLAS

#: module -> names, each imported when it is asked for: all of them take seconds
_HOMES = {
    "calibration.calibrate": ("Calibration", "calibrate"),
    "editing.edit": ("Edit", "stack"),
    "editing.lowrank": ("LowRank",),
    "editing.methods.alphaedit": ("AlphaEditHyperparameters", "alphaedit"),
    "editing.methods.emmet": ("EmmetHyperparameters", "emmet"),
    "editing.methods.finetune": ("FineTuneHyperparameters", "finetune", "finetune_l"),
    "editing.methods.lora": ("LoraHyperparameters", "lora"),
    "editing.methods.memit": ("MemitHyperparameters", "memit"),
    "editing.methods.rome": ("Hyperparameters", "p_rome", "r_rome", "rome"),
    "editing.methods.ultraedit": ("UltraEditHyperparameters", "ultraedit"),
    "editing.saved": ("load_edit",),
    "editing.sequence": ("EditSequence", "in_sequence"),
    "errors": ("RomeError",),
    "evaluation.collapse": ("Guard", "Health"),
    "evaluation.forensics.audit": ("Audit", "audit"),
    "evaluation.forensics.diff": ("Found", "diff"),
    "evaluation.verify": ("Verification", "verify"),
    "facts": ("EditRequest", "Fact"),
    "models.codes": ("CodeChange",),
    "models.hooks": ("intercept",),
    "models.loading": ("load",),
    "moments.estimator": ("Moments", "SecondMoment", "second_moments"),
    "pipeline": ("locate_then_edit",),
    "storage.fact_files": ("read_facts",),
    "tracing.attribution": ("attribution", "attributions"),
    "tracing.average": ("AverageEffects", "average_effects"),
    "tracing.patching": ("activation_patching",),
    "planning": ("Plan", "plan"),
    "tracing.trace": ("Trace", "trace"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    from .calibration.calibrate import Calibration as Calibration
    from .calibration.calibrate import calibrate as calibrate
    from .editing.edit import Edit as Edit
    from .editing.edit import stack as stack
    from .editing.lowrank import LowRank as LowRank
    from .editing.methods.alphaedit import AlphaEditHyperparameters as AlphaEditHyperparameters
    from .editing.methods.alphaedit import alphaedit as alphaedit
    from .editing.methods.emmet import EmmetHyperparameters as EmmetHyperparameters
    from .editing.methods.emmet import emmet as emmet
    from .editing.methods.finetune import FineTuneHyperparameters as FineTuneHyperparameters
    from .editing.methods.finetune import finetune as finetune
    from .editing.methods.finetune import finetune_l as finetune_l
    from .editing.methods.lora import LoraHyperparameters as LoraHyperparameters
    from .editing.methods.lora import lora as lora
    from .editing.methods.memit import MemitHyperparameters as MemitHyperparameters
    from .editing.methods.memit import memit as memit
    from .editing.methods.rome import Hyperparameters as Hyperparameters
    from .editing.methods.rome import p_rome as p_rome
    from .editing.methods.rome import r_rome as r_rome
    from .editing.methods.rome import rome as rome
    from .editing.methods.ultraedit import UltraEditHyperparameters as UltraEditHyperparameters
    from .editing.methods.ultraedit import ultraedit as ultraedit
    from .editing.saved import load_edit as load_edit
    from .editing.sequence import EditSequence as EditSequence
    from .editing.sequence import in_sequence as in_sequence
    from .errors import RomeError as RomeError
    from .evaluation.collapse import Guard as Guard
    from .evaluation.collapse import Health as Health
    from .evaluation.forensics.audit import Audit as Audit
    from .evaluation.forensics.audit import audit as audit
    from .evaluation.forensics.diff import Found as Found
    from .evaluation.forensics.diff import diff as diff
    from .evaluation.verify import Verification as Verification
    from .evaluation.verify import verify as verify
    from .facts import EditRequest as EditRequest
    from .facts import Fact as Fact
    from .models.codes import CodeChange as CodeChange
    from .models.hooks import intercept as intercept
    from .models.loading import load as load
    from .moments.estimator import Moments as Moments
    from .moments.estimator import SecondMoment as SecondMoment
    from .moments.estimator import second_moments as second_moments
    from .pipeline import locate_then_edit as locate_then_edit
    from .planning import Plan as Plan
    from .planning import plan as plan
    from .storage.fact_files import read_facts as read_facts
    from .tracing.attribution import attribution as attribution
    from .tracing.attribution import attributions as attributions
    from .tracing.average import AverageEffects as AverageEffects
    from .tracing.average import average_effects as average_effects
    from .tracing.patching import activation_patching as activation_patching
    from .tracing.trace import Trace as Trace
    from .tracing.trace import trace as trace
else:
    def __getattr__(name: str):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
