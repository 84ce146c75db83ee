"""The editors by the names of the command line."""

from collections.abc import Callable

from ...errors import RomeError
from ..edit import Edit
from ..templates import context_templates, memit_templates
from .alphaedit import alphaedit
from .emmet import emmet
from .finetune import finetune, finetune_l, lora
from .memit import memit
from .rome import p_rome, r_rome, rome

METHODS = {"rome": rome, "r-rome": r_rome, "p-rome": p_rome, "memit": memit, "emmet": emmet,
           "alphaedit": alphaedit, "ft": finetune, "ft-l": finetune_l, "lora": lora}
#: those that write one request a call
ONE_BY_ONE = {"rome", "r-rome", "p-rome"}
#: those that need no second moments
WITHOUT_MOMENTS = {"ft", "ft-l", "lora"}


def method(name: str) -> Callable[..., Edit]:
    """The editor of that name: (model, tokenizer, request or requests, layer or layers, ...).

    Raises RomeError for an unknown one.
    """
    if name not in METHODS:
        raise RomeError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}")
    return METHODS[name]


def layers_up_to(name: str, layer: int, hyperparameters) -> list[int] | int | None:
    """What to edit where `layer` decides: the hyperparameters' layers where they end there, else
    as many, the last of them `layer`; for lora its own."""
    layers = getattr(hyperparameters, "layers", None) or ()
    if name == "lora" or layer in layers[-1:]:
        return hyperparameters.layers
    count = len(layers)
    return list(range(max(0, layer - count + 1), layer + 1)) if count else layer


def templates_of(name: str, model, tokenizer, seed: int, hyperparameters) -> list[str]:
    """The context templates that a method samples where none are given."""
    if name in WITHOUT_MOMENTS:
        return ["{}"]
    if name in ONE_BY_ONE:
        return context_templates(model, tokenizer, seed, hyperparameters.context_lengths)
    return memit_templates(model, tokenizer, seed)
