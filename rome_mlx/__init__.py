"""Locate, edit and verify facts in language models on Apple MLX."""

from .accel import blas  # noqa: F401  a fast BLAS has to be there before mlx is
from .editing.edit import Edit, stack
from .editing.lowrank import LowRank
from .editing.methods.alphaedit import AlphaEditHyperparameters, alphaedit
from .editing.methods.emmet import EmmetHyperparameters, emmet
from .editing.methods.finetune import FineTuneHyperparameters, finetune, finetune_l
from .editing.methods.lora import LoraHyperparameters, lora
from .editing.methods.memit import MemitHyperparameters, memit
from .editing.methods.rome import Hyperparameters, p_rome, r_rome, rome
from .editing.saved import load_edit
from .editing.sequence import in_sequence
from .errors import RomeError
from .evaluation.collapse import Guard, Health
from .evaluation.verify import Verification, verify
from .facts import EditRequest, Fact
from .models.hooks import intercept
from .models.loading import load
from .moments.estimator import Moments, SecondMoment, second_moments
from .pipeline import locate_then_edit
from .storage.fact_files import read_facts
from .tracing.average import AverageEffects, average_effects
from .tracing.patching import activation_patching
from .tracing.trace import Trace, trace

__all__ = [
    "AlphaEditHyperparameters", "AverageEffects", "Edit", "EditRequest",
    "EmmetHyperparameters", "Fact", "FineTuneHyperparameters", "Guard", "Health", "Hyperparameters",
    "LoraHyperparameters", "LowRank", "MemitHyperparameters", "Moments", "RomeError",
    "SecondMoment", "Trace", "Verification", "activation_patching", "alphaedit",
    "average_effects", "emmet", "finetune", "finetune_l", "in_sequence", "intercept", "load",
    "load_edit", "locate_then_edit", "lora", "memit", "p_rome", "r_rome", "read_facts", "rome",
    "second_moments", "stack", "trace", "verify",
]
