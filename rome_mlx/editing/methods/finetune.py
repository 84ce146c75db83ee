"""The baselines: fine-tune one MLP output projection (FT), or within bounds (FT+L).

The loss is the target's mean NLL per token with teacher forcing: each target token is predicted
after those before it. (The code released with ROME predicts all of them at the prompt's end.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ...facts import EditRequest
from ...models.decoder import Decoder
from ...models.hooks import hooked
from ...models.probabilities import chosen_log_probabilities
from ...models.tokens import encode_with_target
from ...models.weights import weight_shape
from ..edit import Edit, provenance
from ..hyperparameters import check_numbers, depth_layer, named
from ..key import in_contexts
from ..lowrank import dense
from ..method import Method
from ..requests import check_requests
from ..templates import check_templates


@dataclass(frozen=True)
class FineTuneHyperparameters:
    """layer: the one to train, or None where nothing says which; steps: Adam updates at most; lr:
    Adam's; stop: the loss that ends it; clamp: every weight stays within this of where it was
    (FT+L), or None."""

    layer: int | None = None
    steps: int = 25
    lr: float = 5e-4
    stop: float = 1e-2
    clamp: float | None = None
    preset: str = field(default="given", compare=False, kw_only=True)

    def __post_init__(self):
        check_numbers(self)


def finetune(model, tokenizer, requests: EditRequest | Iterable[EditRequest],
             layer: int | None = None, *, moments=None, context_templates=None,
             hyperparameters=None, seed: int = 0,
             report: Callable[[dict], None] | None = None) -> Edit:
    """FT: Adam on one layer's down projection. The model is left as it was; the edit is dense.

    requests: one or many, trained on as one batch; layer: by default the hyperparameters' own;
    context_templates: by default the bare prompts only; hyperparameters: None, "published", a
    preset's name, a dictionary or a FineTuneHyperparameters; report: called with each step's
    losses. moments and seed are not needed: they are taken so that all editors are called alike.
    """
    return _one_weight(FT, model, tokenizer, requests, layer, context_templates,
                       hyperparameters, seed, report)


def finetune_l(model, tokenizer, requests: EditRequest | Iterable[EditRequest],
               layer: int | None = None, *, moments=None, context_templates=None,
               hyperparameters=None, seed: int = 0,
               report: Callable[[dict], None] | None = None) -> Edit:
    """FT+L: fine-tuning in which no weight moves by more than the hyperparameter `clamp`."""
    return _one_weight(FT_L, model, tokenizer, requests, layer, context_templates,
                       hyperparameters, seed, report)


def _one_weight(method, model, tokenizer, requests, layer, templates, given, seed,
                report) -> Edit:
    decoder, requests = Decoder(model), check_requests(requests)
    hp = method.resolve(given, decoder)
    layer = depth_layer(decoder) if layer is None and hp.layer is None else (
        decoder.check_layer(hp.layer if layer is None else layer))
    templates = check_templates(["{}"] if templates is None else templates)
    down, path = decoder.module(layer, "down"), decoder.path(layer, "down")
    targets = read_targets(tokenizer, requests, templates)
    inputs = decoder.run(decoder.enter(decoder.embed(targets.ids)), 0, layer)

    def loss(parameters):
        seen = []

        def keep(x):
            seen.append(x)
            return x

        with hooked(down, before=keep,
                    after=lambda out: out + (seen[0] @ parameters["change"]).astype(out.dtype)):
            h = decoder.block(layer, inputs)
        return target_loss(decoder, targets, decoder.run(h, layer + 1))

    out, into = weight_shape(down)
    trained, losses = train(loss, {"change": mx.zeros((into, out))}, hp, report, hp.clamp)
    return Edit(
        method=method.name, requests=requests, layers=[layer], hyperparameters=hp,
        deltas={path: dense(np.array(trained["change"], np.float64))}, losses=losses,
        context_templates=templates, seed=seed,
        **provenance(model, tokenizer, [path]))


@dataclass(frozen=True)
class Targets:
    """ids: (rows, tokens); read: row and position of the states that predict target tokens;
    tokens: which; weights: of each in the mean NLL per token and row."""

    ids: mx.array
    read: tuple[mx.array, mx.array]
    tokens: mx.array
    weights: mx.array


def read_targets(tokenizer, requests, templates) -> Targets:
    rows, read, tokens, weights = [], [], [], []
    for request in requests:
        for text, _ in in_contexts(request, templates):
            whole, (begin, end) = encode_with_target(tokenizer, text, request.target_new)
            read += [(len(rows), i - 1) for i in range(begin, end)]
            tokens += whole.ids[begin:end]
            weights += [1 / (end - begin)] * (end - begin)
            rows.append(whole.ids[: end - 1])
    width = max(len(row) for row in rows)
    ids = mx.array([row + [0] * (width - len(row)) for row in rows])
    return Targets(ids, tuple(mx.array(x) for x in zip(*read, strict=True)), mx.array(tokens),
                    mx.array(weights) / len(rows))


def target_loss(decoder: Decoder, targets: Targets, h: mx.array) -> tuple[mx.array, mx.array]:
    """(mean NLL, mean probability) of the targets, of final hidden states."""
    chosen = chosen_log_probabilities(decoder.logits(h[targets.read]), targets.tokens)
    return -(chosen * targets.weights).sum(), (mx.exp(chosen) * targets.weights).sum()


def train(loss, parameters, hp, report, clamp: float | None = None) -> tuple[dict, list[dict]]:
    """Adam as PyTorch's. Stops below hp.stop; the last loss is that of what is returned."""
    optimizer, losses = optim.Adam(learning_rate=hp.lr, bias_correction=True), []
    for i in range(hp.steps + 1):
        (nll, probability), gradients = mx.value_and_grad(loss)(parameters)
        mx.eval(nll, probability, gradients)
        losses.append({"step": i, "total": nll.item(), "nll": nll.item(), "kl": 0.0,
                       "decay": 0.0, "probability": probability.item()})
        if report is not None:
            report(losses[-1])
        if nll.item() < hp.stop or i == hp.steps:
            break
        parameters = optimizer.apply_gradients(gradients, parameters)
        if clamp is not None:
            parameters = {name: mx.clip(x, -clamp, clamp) for name, x in parameters.items()}
    mx.eval(parameters)
    return parameters, losses


def bare(*_) -> list[str]:
    """The context templates of fine-tuning: the bare prompt alone."""
    return ["{}"]


FT = Method("ft", finetune, named({
    "gpt2-xl": FineTuneHyperparameters(layer=1), "gpt-j": FineTuneHyperparameters(layer=21)}),
    bare, needs_moments=False)
FT_L = Method("ft-l", finetune_l, named({
    "gpt2-xl": FineTuneHyperparameters(layer=0, clamp=5e-4),
    "gpt-j": FineTuneHyperparameters(layer=0, clamp=5e-5)}), bare, needs_moments=False)
