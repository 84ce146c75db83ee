"""The baseline that people know: mlx-lm's LoRA layers, trained on the requests."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from ...facts import EditRequest
from ...models.applied import holder
from ...models.decoder import Decoder
from ...models.weights import weight_shape
from ..edit import Edit, provenance
from ..hyperparameters import check_numbers, named
from ..lowrank import LowRank
from ..method import Method
from ..requests import check_requests
from ..spread import check_layers
from ..templates import check_templates
from .finetune import bare, read_targets, target_loss, train


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
        check_numbers(self)


def lora(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
         moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
         report: Callable[[dict], None] | None = None) -> Edit:
    """Adam on mlx-lm's LoRA layers around the down projections of all layers, or those given.

    seed: of the adapters' random side; hyperparameters: as above, a LoraHyperparameters.
    """
    decoder, requests = Decoder(model), check_requests(requests)
    hp = LORA.resolve(hyperparameters, decoder)
    layers = hp.layers if layers is None else layers
    layers = check_layers(decoder, decoder.dense_layers if layers is None else layers)
    templates = check_templates(["{}"] if context_templates is None else context_templates)
    paths, keys = [decoder.path(layer, "down") for layer in layers], mx.random.key(seed)
    about = provenance(model, tokenizer, paths)
    targets = read_targets(tokenizer, requests, templates)
    inputs = decoder.run(decoder.enter(decoder.embed(targets.ids)), 0, layers[0])
    places = [holder(model, path) for path in paths]
    adapters, start = {}, {}
    for path, (_, _, module), key in zip(paths, places, mx.random.split(keys, len(paths)),
                                         strict=True):
        out, into = weight_shape(module)
        adapters[path] = LoRALinear(into, out, r=hp.rank, scale=hp.scale)
        adapters[path].linear = module
        start[path] = {"a": mx.random.uniform(-1, 1, (into, hp.rank), key=key) / into**0.5,
                       "b": mx.zeros((hp.rank, out))}

    def loss(parameters):
        for path, pair in parameters.items():
            adapters[path].lora_a, adapters[path].lora_b = pair["a"], pair["b"]
        return target_loss(decoder, targets, decoder.run(inputs, layers[0]))

    try:
        for path, (parent, name, _) in zip(paths, places, strict=True):
            parent[name] = adapters[path]
        trained, losses = train(loss, start, hp, report)
    finally:
        for parent, name, module in places:
            parent[name] = module
    deltas = {path: LowRank(hp.scale * np.array(pair["a"], np.float64),
                            np.array(pair["b"], np.float64)) for path, pair in trained.items()}
    return Edit(method="lora", requests=requests, deltas=deltas, layers=layers,
                hyperparameters=hp, context_templates=templates, losses=losses, seed=seed, **about)


LORA = Method("lora", lora, named({"mlx-lm": LoraHyperparameters()}), bare, needs_moments=False)
