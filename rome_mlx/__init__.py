"""Locate, edit and verify facts in language models on Apple MLX."""

from .accel import blas  # noqa: F401  a fast BLAS has to be there before mlx is
from .evaluation.collapse import Guard, Health
from .editing.adapter import load_edit
from .editing.methods.alphaedit import alphaedit
from .editing.edit import Edit, LowRank, stack
from .editing.methods.emmet import emmet
from .editing.methods.finetune import finetune, finetune_l, lora
from .editing.hyperparameters import (
    AlphaEditHyperparameters,
    EmmetHyperparameters,
    FineTuneHyperparameters,
    Hyperparameters,
    LoraHyperparameters,
    MemitHyperparameters,
)
from .editing.methods.memit import memit
from .editing.methods.rome import p_rome, r_rome, rome
from .editing.sequence import in_sequence
from .errors import RomeError
from .storage.fact_files import read_facts
from .facts import EditRequest, Fact
from .models.hooks import intercept
from .models.loading import load
from .moments.estimator import Moments, SecondMoment, second_moments
from .pipeline import locate_then_edit
from .tracing.average import AverageEffects, average_effects
from .tracing.patching import activation_patching
from .tracing.trace import Trace, trace
from .evaluation.verify import Verification, verify

__all__ = [
    "AlphaEditHyperparameters", "AverageEffects", "Edit", "EditRequest",
    "EmmetHyperparameters", "Fact", "FineTuneHyperparameters", "Guard", "Health", "Hyperparameters",
    "LoraHyperparameters", "LowRank", "MemitHyperparameters", "Moments", "RomeError",
    "SecondMoment", "Trace", "Verification", "activation_patching", "alphaedit",
    "average_effects", "emmet", "finetune", "finetune_l", "in_sequence", "intercept", "load",
    "load_edit", "locate_then_edit", "lora", "memit", "p_rome", "r_rome", "read_facts", "rome",
    "second_moments", "stack", "trace", "verify",
]
