"""UltraEdit: one gradient a request, by a closed form (2505.14679), the fast baseline of sequences.

Nothing is optimised: at the tokens that predict the target, every module's input h and the loss's
gradient g at its output are read once. How far an output moves, and in which direction, is set by h
and g normalised with the mean and the deviation of everything that was written so far.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ...facts import EditRequest
from ...models.decoder import Decoder
from ...models.hooks import hooked
from ...models.weights import weight_shape
from ..edit import Edit, provenance
from ..hyperparameters import check_numbers, named, nearest_dense
from ..lowrank import LowRank
from ..method import Method
from ..requests import check_requests
from ..spread import check_layers
from ..templates import check_templates
from .finetune import bare, read_targets, target_loss

_CHUNK = 10  # requests whose gradients are of one loss, as in the released code


@dataclass(frozen=True)
class UltraEditHyperparameters:
    """layers: whose MLP output projections change, None for the last two but one; rate: η, how far
    outputs move."""

    layers: tuple[int, ...] | None = None
    rate: float = 1e-6
    preset: str = field(default="given", compare=False, kw_only=True)

    def __post_init__(self):
        check_numbers(self)


class Running:
    """Mean and deviation of all rows so far, as the released code has them: a batch's own variance
    counts with one row more than it has degrees of freedom."""

    def __init__(self):
        self.rows, self.mean, self.squares = 0, np.zeros(1), np.zeros(1)

    def update(self, x: np.ndarray) -> None:
        """x: (rows, width)."""
        rows, many = self.rows + len(x), len(x) > 1
        delta = x.mean(axis=0) - self.mean
        self.mean = self.mean + len(x) * delta / rows
        self.squares = (self.squares + (len(x) * x.var(axis=0, ddof=1) if many else 0.0)
                        + self.rows * len(x) * delta**2 / rows)
        self.rows = rows

    def normalised(self, x: np.ndarray) -> np.ndarray:
        tiny = np.finfo(np.float32).eps
        return (x - self.mean) / (np.sqrt(self.squares / (self.rows - 1 + tiny)) + tiny)

    def arrays(self) -> dict[str, np.ndarray]:
        """To be kept, and given back to `restore`."""
        return {"rows": np.array([self.rows]), "mean": self.mean, "squares": self.squares}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.rows = int(arrays["rows"][0])
        self.mean, self.squares = arrays["mean"], arrays["squares"]


def ultraedit(model, tokenizer, requests: EditRequest | Iterable[EditRequest], layers=None, *,
              moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
              report: Callable[[dict], None] | None = None,
              running: Running | None = None) -> Edit:
    """Move the outputs at the target's tokens by -η‖ĥ‖² ĝ, each weight by ridge regression:
    ΔWᵀ = (HᵀH + I)⁻¹HᵀV (UltraEdit paper, section 4; its released code).

    requests: one or many; layers: by default the hyperparameters' own, or the last two but one;
    context_templates: by default the bare prompts only; running: what earlier calls of a sequence
    have seen, changed by this one (`EditSequence` keeps it). moments and seed are taken so that all
    editors are called alike. The model is left as it was.
    """
    decoder, requests = Decoder(model), check_requests(requests)
    hp, running = ULTRAEDIT.resolve(hyperparameters, decoder), running or Running()
    layers = check_layers(decoder, _layers(decoder, hp) if layers is None else layers)
    templates = check_templates(["{}"] if context_templates is None else context_templates)
    losses, found = [], {layer: [] for layer in layers}
    for i in range(0, len(requests), _CHUNK):
        loss, read = _read(decoder, tokenizer, requests[i: i + _CHUNK], templates, layers)
        losses.append(loss)
        for layer, (keys, gradients) in read.items():
            running.update(np.concatenate([keys, gradients], axis=1))
            found[layer].append((keys, gradients))
    if report is not None:
        report(_said(losses))
    deltas = {}
    for layer, parts in found.items():
        keys, gradients = (np.concatenate(x) for x in zip(*parts, strict=True))
        normed = running.normalised(np.concatenate([keys, gradients], axis=1))
        ahead, back = np.split(normed, [keys.shape[1]], axis=1)
        moved = -hp.rate * (ahead**2).sum(axis=1, keepdims=True) * back  # V (n, d_out)
        gram = keys @ keys.T + np.eye(len(keys))  # (HᵀH + I)⁻¹Hᵀ = Hᵀ(HHᵀ + I)⁻¹
        deltas[decoder.path(layer, "down")] = LowRank(
            keys.T, np.linalg.solve(gram, moved)).compact()
    return Edit(method="ultraedit", requests=requests, deltas=deltas, layers=layers,
                hyperparameters=hp, context_templates=templates, losses=[_said(losses)], seed=seed,
                **provenance(model, tokenizer, deltas))


def _layers(decoder: Decoder, hp) -> list[int]:
    """Those of the paper for 32 layers, 29 and 30, counted from the end."""
    count = len(decoder.layers)
    return list(hp.layers or sorted({nearest_dense(decoder, max(0, count - back))
                                     for back in (3, 2)}))


def _read(decoder: Decoder, tokenizer, requests, templates, layers):
    """The loss, and {layer: (h (n, d_in), g (n, d_out))} float64 at the tokens that predict."""
    targets = read_targets(tokenizer, requests, templates)
    count = len(targets.tokens)
    targets = type(targets)(targets.ids, targets.read, targets.tokens,
                            mx.full(count, 1 / count))  # a mean over tokens
    inputs, seen = decoder.run(decoder.enter(decoder.embed(targets.ids)), 0, layers[0]), {}

    def loss(moved):
        with ExitStack() as stack:
            for layer in layers:
                def keep(x, layer=layer):
                    seen[layer] = x[targets.read]
                    return x

                def add(out, layer=layer):
                    return out.at[targets.read].add(moved[str(layer)].astype(out.dtype))

                stack.enter_context(hooked(decoder.module(layer, "down"), before=keep, after=add))
            nll, probability = target_loss(decoder, targets, decoder.run(inputs, layers[0]))
        return nll, (probability, seen)

    out = weight_shape(decoder.module(layers[0], "down"))[0]
    (nll, (probability, keys)), gradients = mx.value_and_grad(loss)(
        {str(layer): mx.zeros((count, out)) for layer in layers})
    mx.eval(nll, probability, keys, gradients)
    return (nll.item(), probability.item()), {
        layer: tuple(np.array(x.astype(mx.float32), np.float64)
                     for x in (keys[layer], gradients[str(layer)])) for layer in layers}


def _said(losses: list[tuple[float, float]]) -> dict:
    nll, probability = np.mean(losses, axis=0).tolist()
    return {"step": 0, "total": nll, "nll": nll, "kl": 0.0, "decay": 0.0,
            "probability": probability}


ULTRAEDIT = Method("ultraedit", ultraedit, named({
    "ultraedit": UltraEditHyperparameters(),
    "mistral-7b": UltraEditHyperparameters(layers=(29, 30))}), bare, needs_moments=False,
    memory=Running)
