"""The baselines: fine-tune one MLP output projection (FT), within bounds (FT+L), or LoRA adapters.

The loss is the target's mean NLL a token with teacher forcing: each target token is predicted
after those before it. (The code released with ROME predicts all of them at the prompt's end.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from ...facts import EditRequest
from ...models.applied import holder
from ...models.decoder import Decoder
from ...models.hooks import hooked
from ...models.loading import describe
from ...models.tokens import encode_with_target
from ...models.weights import weight_shape
from ..edit import Edit, LowRank, dense, provenance
from ..hyperparameters import hyperparameters as resolve
from ..key import in_contexts
from ..requests import check_requests
from ..spread import check_layers
from ..templates import check_templates


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
    return _one_weight("ft", model, tokenizer, requests, layer, context_templates,
                       hyperparameters, seed, report)


def finetune_l(model, tokenizer, requests: EditRequest | Iterable[EditRequest],
               layer: int | None = None, *, moments=None, context_templates=None,
               hyperparameters=None, seed: int = 0,
               report: Callable[[dict], None] | None = None) -> Edit:
    """FT+L: fine-tuning in which no weight moves by more than the hyperparameter `clamp`."""
    return _one_weight("ft-l", model, tokenizer, requests, layer, context_templates,
                       hyperparameters, seed, report)


def lora(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
         moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
         report: Callable[[dict], None] | None = None) -> Edit:
    """Adam on mlx-lm's LoRA layers around the down projections of all layers, or those given.

    seed: of the adapters' random side; hyperparameters: as above, a LoraHyperparameters.
    """
    decoder, requests = Decoder(model), check_requests(requests)
    hp = resolve(hyperparameters, "lora", decoder)
    layers = hp.layers if layers is None else layers
    layers = check_layers(decoder, decoder.dense_layers if layers is None else layers)
    templates = check_templates(["{}"] if context_templates is None else context_templates)
    paths, keys = [decoder.path(layer, "down") for layer in layers], mx.random.key(seed)
    about = provenance(decoder, describe(model, tokenizer), paths)
    targets = _targets(tokenizer, requests, templates)
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
        return _loss(decoder, targets, decoder.run(inputs, layers[0]))

    try:
        for path, (parent, name, _) in zip(paths, places, strict=True):
            parent[name] = adapters[path]
        trained, losses = _train(loss, start, hp, report)
    finally:
        for parent, name, module in places:
            parent[name] = module
    deltas = {path: LowRank(hp.scale * np.array(pair["a"], np.float64),
                            np.array(pair["b"], np.float64)) for path, pair in trained.items()}
    return Edit(method="lora", requests=requests, deltas=deltas, layers=layers,
                hyperparameters=hp, context_templates=templates, losses=losses, seed=seed, **about)


def _one_weight(method, model, tokenizer, requests, layer, templates, given, seed,
                report) -> Edit:
    decoder, requests = Decoder(model), check_requests(requests)
    hp = resolve(given, method, decoder)
    layer = decoder.check_layer(hp.layer if layer is None else layer)
    templates = check_templates(["{}"] if templates is None else templates)
    down, path = decoder.module(layer, "down"), decoder.path(layer, "down")
    targets = _targets(tokenizer, requests, templates)
    inputs = decoder.run(decoder.enter(decoder.embed(targets.ids)), 0, layer)

    def loss(parameters):
        seen = []

        def keep(x):
            seen.append(x)
            return x

        with hooked(down, before=keep,
                    after=lambda out: out + (seen[0] @ parameters["change"]).astype(out.dtype)):
            h = decoder.block(layer, inputs)
        return _loss(decoder, targets, decoder.run(h, layer + 1))

    out, into = weight_shape(down)
    trained, losses = _train(loss, {"change": mx.zeros((into, out))}, hp, report, hp.clamp)
    return Edit(
        method=method, requests=requests, layers=[layer], hyperparameters=hp,
        deltas={path: dense(np.array(trained["change"], np.float64))}, losses=losses,
        context_templates=templates, seed=seed,
        **provenance(decoder, describe(model, tokenizer), [path]))


@dataclass(frozen=True)
class _Targets:
    """ids: (rows, tokens); read: row and position of the states that predict target tokens;
    tokens: which; weights: of each in the mean NLL a token a row."""

    ids: mx.array
    read: tuple[mx.array, mx.array]
    tokens: mx.array
    weights: mx.array


def _targets(tokenizer, requests, templates) -> _Targets:
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
    return _Targets(ids, tuple(mx.array(x) for x in zip(*read, strict=True)), mx.array(tokens),
                    mx.array(weights) / len(rows))


def _loss(decoder: Decoder, targets: _Targets, h: mx.array) -> tuple[mx.array, mx.array]:
    """(mean NLL, mean probability) of the targets, of final hidden states."""
    logits = decoder.logits(h[targets.read]).astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets.tokens[:, None], axis=1)[:, 0]
    chosen = chosen - mx.logsumexp(logits, axis=-1)
    return -(chosen * targets.weights).sum(), (mx.exp(chosen) * targets.weights).sum()


def _train(loss, parameters, hp, report, clamp: float | None = None) -> tuple[dict, list[dict]]:
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
