"""What each method lets one choose, under the names of the authors' code, and presets by model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import RomeError
from ..models.architectures import model_type
from ..models.decoder import Decoder
from ..models.weights import weight_shape


@dataclass(frozen=True)
class ValueHyperparameters:
    """Of the optimisation of a value (ROME paper, section 3.1 and appendix E.5).

    v_num_grad_steps: losses computed, one more than updates; v_lr: Adam's; v_weight_decay: of
    ‖δ‖/‖v0‖²; clamp_norm_factor: ‖δ‖ at most this times ‖v0‖; kl_factor: of KL(new ‖ initial) on
    "{subject} is a"; v_stop: the loss that ends the optimisation; preset: where the numbers come
    from, in words.
    """

    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    v_stop: float = 0.05
    preset: str = field(default="given", compare=False, kw_only=True)

    def __post_init__(self):
        _check(self)


@dataclass(frozen=True)
class Hyperparameters(ValueHyperparameters):
    """ROME, r-ROME and p-ROME. layer: the preset's layer, or None; ridge: added to C's diagonal,
    as a fraction of its mean; context_lengths: of the templates that are sampled beside the bare
    prompt, (how many, of how many tokens)."""

    layer: int | None = None
    ridge: float = 0.0
    context_lengths: tuple[tuple[int, int], ...] = ((10, 5), (10, 10))


@dataclass(frozen=True)
class MemitHyperparameters(ValueHyperparameters):
    """layers: those that share the residual; update_weight: λ of (λC + KKᵀ)."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] = (13, 14, 15, 16, 17)
    update_weight: float = 20000.0


@dataclass(frozen=True)
class EmmetHyperparameters(ValueHyperparameters):
    """moment_scale: what C is multiplied by; ridge: added to KᵀC⁻¹K for more than one request."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] = (17,)
    moment_scale: float = 1000.0
    ridge: float = 0.1


@dataclass(frozen=True)
class AlphaEditHyperparameters(ValueHyperparameters):
    """threshold: keys may only change along directions where C's eigenvalue is below it;
    regularization: λ, against large updates."""

    clamp_norm_factor: float = 0.75
    layers: tuple[int, ...] = (13, 14, 15, 16, 17)
    threshold: float = 0.02
    regularization: float = 10.0


@dataclass(frozen=True)
class FineTuneHyperparameters:
    """steps: Adam updates at most; lr: Adam's; stop: the loss that ends it; clamp: every weight
    stays within this of where it was (FT+L), or None."""

    layer: int | None = 1
    steps: int = 25
    lr: float = 5e-4
    stop: float = 1e-2
    clamp: float | None = None
    preset: str = field(default="given", compare=False, kw_only=True)

    def __post_init__(self):
        _check(self)


@dataclass(frozen=True)
class LoraHyperparameters:
    """layers: whose MLP output projections are adapted, None for all; rank and scale: mlx-lm's
    LoRA defaults; steps, lr, stop: as in fine-tuning."""

    layers: tuple[int, ...] | None = None
    steps: int = 25
    lr: float = 1e-4
    stop: float = 1e-2
    rank: int = 8
    scale: float = 20.0
    preset: str = field(default="given", compare=False, kw_only=True)

    def __post_init__(self):
        _check(self)


_MAY_BE_ZERO = {"v_weight_decay", "kl_factor", "v_stop", "ridge", "stop"}


def _check(hp) -> None:
    """Raises RomeError for a number out of range; layers become a tuple."""
    for one in dataclasses.fields(hp):
        name, value = one.name, getattr(hp, one.name)
        if name == "preset" or (value is None and one.default is None):
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


_COMMON = {"v_num_grad_steps": 25, "v_weight_decay": 1e-3, "layer": 5}
_ROME = {
    "gpt2-xl": Hyperparameters(layer=17),
    "gpt2-medium": Hyperparameters(layer=8, clamp_norm_factor=3.0),
    "gpt2-large": Hyperparameters(layer=12),
    "gpt-j": Hyperparameters(layer=5),
    "gpt-neox": Hyperparameters(layer=15),
    **{name: Hyperparameters(**_COMMON)
       for name in ("llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b")},
    # by benchmarks/sweep.py, as sweep_batch.py for many facts
    "smollm2-135m": Hyperparameters(layer=5, clamp_norm_factor=2.0,
                                    context_lengths=((1, 10), (2, 20))),
}
_GPT_J_LAYERS, _LLAMA_3_LAYERS = (3, 4, 5, 6, 7, 8), (4, 5, 6, 7, 8)

#: method -> name of a preset -> hyperparameters; "published" is the first of a method
PRESETS = {
    "rome": _ROME, "r-rome": _ROME, "p-rome": _ROME,
    "memit": {
        "gpt2-xl": MemitHyperparameters(),
        "gpt-j": MemitHyperparameters(
            layers=_GPT_J_LAYERS, update_weight=15000.0, v_num_grad_steps=25),
        "llama-3-8b": MemitHyperparameters(
            layers=_LLAMA_3_LAYERS, update_weight=15000.0, v_num_grad_steps=25, v_lr=0.1),
        "smollm2-135m": MemitHyperparameters(layers=(4, 5, 6), update_weight=20.0),
    },
    "emmet": {
        "gpt2-xl": EmmetHyperparameters(),
        "gpt-j": EmmetHyperparameters(layers=(5,), moment_scale=1.0),
        "llama-2-7b": EmmetHyperparameters(layers=(5,), moment_scale=1.0, clamp_norm_factor=4.0),
        "smollm2-135m": EmmetHyperparameters(layers=(6,)),
    },
    "alphaedit": {
        "gpt2-xl": AlphaEditHyperparameters(),
        "gpt-j": AlphaEditHyperparameters(layers=_GPT_J_LAYERS, v_num_grad_steps=25),
        "llama-3-8b": AlphaEditHyperparameters(
            layers=_LLAMA_3_LAYERS, v_num_grad_steps=25, v_lr=0.1),
        "smollm2-135m": AlphaEditHyperparameters(layers=(4, 5, 6)),
    },
    "ft": {"gpt2-xl": FineTuneHyperparameters(), "gpt-j": FineTuneHyperparameters(layer=21)},
    "ft-l": {"gpt2-xl": FineTuneHyperparameters(layer=0, clamp=5e-4),
             "gpt-j": FineTuneHyperparameters(layer=0, clamp=5e-5)},
    "lora": {"mlx-lm": LoraHyperparameters()},
}
PRESETS = {method: {name: dataclasses.replace(hp, preset=name) for name, hp in presets.items()}
           for method, presets in PRESETS.items()}

#: (type, layers, width, keys' width, vocabulary) of the models that the presets are for
_MODELS = {
    ("llama", 30, 576, 1536, 49152): "smollm2-135m",
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


def hyperparameters(given=None, method: str = "rome", decoder: Decoder | None = None):
    """A method's hyperparameters, from what a caller may give.

    given: None for the model's own preset, "published", the name of a preset, a dict of changes
    to the model's own, or the method's dataclass. decoder: the model; where it has no preset, the
    published numbers, with layers by a rule of depth (ROME: without one, as its trace says).
    Raises RomeError, naming the choices.
    """
    presets = PRESETS[method]
    published = next(iter(presets.values()))
    if given == "published":
        return dataclasses.replace(published, preset=f"published ({published.preset})")
    if isinstance(given, type(published)):
        return given
    if given is None:
        return published if decoder is None else _own(decoder, method)
    if isinstance(given, Mapping):
        own = published if decoder is None else _own(decoder, method)
        known = {f.name for f in dataclasses.fields(published)}
        if unknown := sorted(map(str, set(given) - known)):
            raise RomeError(f"unknown hyperparameters {', '.join(unknown)} of {method}; "
                            f"choose from {', '.join(sorted(known - {'preset'}))}")
        try:
            return dataclasses.replace(own, **{"preset": f"{own.preset}, changed", **given})
        except (TypeError, ValueError) as error:
            if isinstance(error, RomeError):
                raise
            raise RomeError(f"hyperparameters {dict(given)}: {error}; give numbers") from error
    if isinstance(given, str) and given in presets:
        return presets[given]
    raise RomeError(f"hyperparameters {given!r} of {method}: give 'published', a preset "
                    f"({', '.join(presets)}), a dictionary or a {type(published).__name__}")


def preset_name(decoder: Decoder) -> str | None:
    """The preset for this model, known by its type and its sizes."""
    out, into = weight_shape(decoder.module(0, "down"))
    return _MODELS.get((model_type(decoder.model), len(decoder.layers), out, into,
                        weight_shape(decoder.embedding)[0]))


def depth_layer(decoder: Decoder) -> int:
    """The layer to edit where nothing is known of a model but its depth, and which are dense."""
    layer = round(_DECIDING_DEPTH * len(decoder.layers))
    return min(decoder.dense_layers, key=lambda dense: abs(dense - layer))


def _own(decoder: Decoder, method: str):
    """The model's preset, or the published one at the rule's layers, and words that say so."""
    presets, last = PRESETS[method], depth_layer(decoder)
    if (name := preset_name(decoder)) in presets:
        return presets[name]
    published = next(iter(presets.values()))
    words = f"{published.preset}'s, for want of this model's"
    if getattr(published, "layers", None):
        where = {"layers": tuple(range(max(0, last - len(published.layers) + 1), last + 1))}
    elif hasattr(published, "layer"):
        where = {"layer": None if isinstance(published, Hyperparameters) else last}
    else:
        where = {}
    if where and None not in where.values():
        words += f"; up to layer {last} by depth"
    return dataclasses.replace(published, preset=words, **where)
