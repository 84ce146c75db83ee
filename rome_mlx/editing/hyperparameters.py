"""What all methods' hyperparameters share, and the models that presets are for.

Names are those of the authors' code; a method's own are in its file.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import RomeError
from ..models.architectures import model_type
from ..models.decoder import Decoder
from ..models.weights import weight_shape
from .step_rules import STEP_RULES


@dataclass(frozen=True)
class ValueHyperparameters:
    """Of the optimisation of a value (ROME paper, section 3.1 and appendix E.5).

    v_rule: how δ is moved, "adam" (the authors') or "ball" (see `step_rules`); v_num_grad_steps:
    losses computed at most, one more than updates; v_lr: Adam's, or the first step in the ball, as
    a fraction of its radius; v_weight_decay: of
    ‖δ‖/‖v0‖²; clamp_norm_factor: ‖δ‖ at most this times ‖v0‖; kl_factor: of KL(new ‖ initial) on
    "{subject} is a"; v_stop: the loss that ends the optimisation; preset: where the numbers come
    from, in words.
    """

    v_rule: str = field(default="adam", kw_only=True)
    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    v_stop: float = 0.05
    preset: str = field(default="given", compare=False, kw_only=True)

    def __post_init__(self):
        check_numbers(self)
        if self.v_rule not in tuple(STEP_RULES):
            raise RomeError(f"v_rule is {self.v_rule!r}; choose from {', '.join(STEP_RULES)}")


_MAY_BE_ZERO = {"v_weight_decay", "kl_factor", "v_stop", "ridge", "stop", "anchor"}


def check_numbers(hp) -> None:
    """Raises RomeError for a number out of range; layers become a tuple."""
    for one in dataclasses.fields(hp):
        name, value = one.name, getattr(hp, one.name)
        if isinstance(one.default, str) or (value is None and one.default is None):
            continue
        if name == "layers":
            if not value or list(value) != sorted({int(layer) for layer in value}):
                raise RomeError(f"layers is {value}; give rising numbers, such as [4, 5, 6]")
            object.__setattr__(hp, name, tuple(value))
        elif name == "context_lengths":
            pairs = tuple(tuple(pair) for pair in value)
            if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
                raise RomeError(f"context_lengths is {value}; give pairs such as [[10, 5]]: how "
                                "many templates, of how many tokens")
            object.__setattr__(hp, name, pairs)
        elif name != "layer" and isinstance(one.default, int) and \
                (not isinstance(value, int) or value < 1):
            raise RomeError(f"{name} is {value}; give 1 or more")
        elif name in _MAY_BE_ZERO and not value >= 0:
            raise RomeError(f"{name} is {value}; give 0 or more")
        elif name not in _MAY_BE_ZERO | {"layer"} and not value > 0:
            raise RomeError(f"{name} is {value}; give a number above 0")


def named(presets: Mapping) -> dict:
    """{name: hyperparameters}, each of which says its name."""
    return {name: dataclasses.replace(hp, preset=name) for name, hp in presets.items()}


#: (type, layers, width, keys' width, vocabulary) of the models that the presets are for
_MODELS = {
    ("llama", 30, 576, 1536, 49152): "smollm2-135m",
    ("gemma3_text", 18, 640, 2048, 262144): "gemma-3-270m",
    ("gpt2", 24, 1024, 4096, 50257): "gpt2-medium",
    ("gpt2", 36, 1280, 5120, 50257): "gpt2-large",
    ("gpt2", 48, 1600, 6400, 50257): "gpt2-xl",
    ("gptj", 28, 4096, 16384, 50400): "gpt-j",
    ("gpt_neox", 44, 6144, 24576, 50432): "gpt-neox",
    ("llama", 32, 4096, 11008, 32000): "llama-2-7b",
    ("llama", 32, 4096, 14336, 128256): "llama-3-8b",
    ("llama", 32, 4096, 14336, 32000): "mistral-7b",
    ("llama", 32, 4096, 14336, 32768): "mistral-7b",
    ("qwen2", 28, 3584, 18944, 152064): "qwen2.5-7b",
}
_DECIDING_DEPTH = 0.15  # of the layers, where the editing literature's presets lie on average


def preset_name(decoder: Decoder) -> str | None:
    """The preset for this model, known by its type and its sizes."""
    out, into = weight_shape(decoder.module(decoder.dense_layers[0], "down"))
    return _MODELS.get((model_type(decoder.model), len(decoder.layers), out, into,
                        weight_shape(decoder.embedding)[0]))


def depth_layer(decoder: Decoder) -> int:
    """The layer to edit where nothing is known of a model but its depth, and which are dense."""
    return nearest_dense(decoder, round(_DECIDING_DEPTH * len(decoder.layers)))


def nearest_dense(decoder: Decoder, layer: int) -> int:
    """The nearest layer that can be edited: mixtures of experts cannot."""
    return min(decoder.dense_layers, key=lambda dense: abs(dense - layer))
