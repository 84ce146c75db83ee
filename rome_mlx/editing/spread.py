"""What MEMIT, EMMET and AlphaEdit share: values at the last edited layer, spread over the layers.

Each layer takes its share of what is still missing, with the keys that the model computes when
the layers before it are edited. The methods differ in how a layer's keys become its update.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from ..errors import RomeError
from ..models.applied import edits_of, without_edits
from ..models.decoder import Decoder
from ..moments.lookup import find_moments
from .before_norm import before_norm, normed
from .edit import Edit, provenance
from .hyperparameters import ValueHyperparameters, depth_layer
from .key import in_contexts, read_keys, read_states
from .least_squares import LeastSquares
from .lowrank import LowRank
from .method import Method
from .requests import check_requests
from .templates import check_templates, memit_templates
from .value import Value, mean_losses, optimize_values

#: where a norm follows the MLP, values are of the MLP's output, as ROME's are, and so is the clamp
BEFORE_NORM = {"clamp_norm_factor": ValueHyperparameters.clamp_norm_factor}

_TEXTS = 512  # rows run at once



class Equations(Protocol):
    """What turns a layer's keys into its update."""

    def update(self, keys: np.ndarray) -> np.ndarray:
        """K (d_in, n) -> A (d_in, n) of the update Δ = R Aᵀ."""


def spread(method: Method, model, tokenizer, requests, layers=None, *, moments=None,
           context_templates=None, hyperparameters=None, seed: int = 0,
           report: Callable[[dict], None] | None = None, earlier: Sequence[Edit] = (),
           values: Sequence[Value] | None = None,
           written: Mapping[str, LeastSquares] | None = None) -> Edit:
    """Write requests into layers, R = (z - h_L) / (layers left) at each (MEMIT paper, eq. 20).

    The model is left as it was. Arguments as for `memit`.
    """
    decoder, requests = Decoder(model), check_requests(requests)
    hp = method.resolve(hyperparameters, decoder)
    if layers is None:
        layers = hp.layers or method.layers_up_to(depth_layer(decoder), hp)
    layers = check_layers(decoder, layers)
    given = find_moments(model, tokenizer, layers, moments)  # missing before any work, or not
    templates = (sampled_templates(model, tokenizer, seed, hp) if context_templates is None
                 else check_templates(context_templates))
    if values is None:
        values = find_values(decoder, tokenizer, requests, templates, layers[-1], hp, report)
    goal = _goal(decoder, tokenizer, requests, layers[-1], values)  # z, (n, dim)
    if share := getattr(hp, "anchor", 0.0):
        goal = _anchored(decoder, tokenizer, requests, layers[-1], goal, share)

    found, keys, targets = [], {}, {}  # edits of one layer each, and what they write where
    details: dict[str, list] = {}
    try:
        for i, layer in enumerate(layers):
            path = decoder.path(layer, "down")
            keys[path] = request_keys(decoder, tokenizer, requests, templates, layer).T
            state = _states(decoder, tokenizer, requests, layers[-1])
            residual = _residual(decoder, tokenizer, requests, layer,
                                 (goal - state) / (len(layers) - i))  # Rᵀ, (n, dim)
            targets[path] = residual.T
            equations, said = (written[path], {}) if written is not None else equations_at(
                method, hp, decoder, layer, given.matrix(layer), earlier)
            update = equations.update(keys[path])
            for name, about in said.items():
                details.setdefault(name, []).append({"layer": layer, **about})
            found.append(Edit(method.name, requests, {path: LowRank(update, residual).compact()},
                              [layer]))
            found[-1].apply(model)
    finally:
        for edit in reversed(found):
            if edit.is_applied(model):
                edit.revert(model)
    deltas = {path: delta for edit in found for path, delta in edit.deltas.items()}
    return Edit(
        method=method.name, requests=requests, deltas=deltas, layers=layers, hyperparameters=hp,
        context_templates=templates, losses=mean_losses(values), seed=seed, keys=keys,
        targets=targets, details=details, moments=given.used,
        **provenance(model, tokenizer, deltas))


def equations_at(method: Method, hp, decoder: Decoder, layer: int, matrix: np.ndarray,
                 earlier: Sequence[Edit] = ()) -> tuple[Equations, dict]:
    """A layer's equations, and what the method says of them. They protect the keys of the edits
    applied to the model and of `earlier` ones, where the method does such a thing."""
    equations, said = method.equations(hp, matrix)
    if method.protects:
        path = decoder.path(layer, "down")
        equations.protect(_earlier_keys([*edits_of(decoder.model), *earlier], path, matrix))
    return equations, said


def find_values(decoder: Decoder, tokenizer, requests, templates, layer: int, hp,
                report: Callable[[dict], None] | None = None) -> list[Value]:
    """What a block should give for each request, to be spread over it and those below: a δ on its
    output, or, where a norm follows the MLP, on the MLP's."""
    part = "mlp" if decoder.architecture.mlp_norm else "hidden"
    return optimize_values(decoder, tokenizer, requests, templates, layer, hp, part, report)


def sampled_templates(model, tokenizer, seed: int, hp) -> list[str]:
    """The context templates of these methods: MEMIT's."""
    return memit_templates(model, tokenizer, seed)


def check_layers(decoder: Decoder, layers) -> list[int]:
    """A layer or several, rising, each there. Raises RomeError otherwise."""
    layers = [layers] if isinstance(layers, int) else list(layers)
    if not layers or layers != sorted(set(layers)):
        raise RomeError(f"layers is {layers}; give rising numbers, such as [4, 5, 6]")
    return [decoder.check_layer(layer) for layer in layers]


def request_keys(decoder: Decoder, tokenizer, requests, templates, layer: int) -> np.ndarray:
    """k (requests, d_in): the bare prompt's key and the mean of the other contexts', half each."""
    bare = np.array([template == "{}" for template in templates])
    if bare.all() or not bare.any():
        weights = np.full(len(templates), 1 / len(templates))
    else:
        weights = np.where(bare, 0.5 / bare.sum(), 0.5 / (~bare).sum())
    texts = [text for request in requests for text in in_contexts(request, templates)]
    rows = np.concatenate([read_keys(decoder, tokenizer, part, layer).keys
                           for part in _parts(texts)])
    return np.einsum("t,ntd->nd", weights, rows.reshape(len(requests), len(templates), -1))


def _goal(decoder: Decoder, tokenizer, requests, layer: int, values) -> np.ndarray:
    """z (requests, dim): the block's output when the values' δ are added."""
    if not decoder.architecture.mlp_norm:
        return np.stack([value.initial + value.delta for value in values])
    outputs, norm = _outputs(decoder, tokenizer, requests, layer), decoder.module(layer, "mlp_norm")
    changed = outputs + np.stack([value.delta for value in values])
    return (_states(decoder, tokenizer, requests, layer)
            + decoder.residual(layer) * (normed(norm, changed) - normed(norm, outputs)))


def _anchored(decoder: Decoder, tokenizer, requests, layer: int, goal: np.ndarray,
              share: float) -> np.ndarray:
    """z with the norm that the block's output has there without any edit: wholly for a share of 1.
    In a sequence values and weights else make one another longer (Norm-Anchor Scaling,
    2602.02543, which takes one norm for all requests)."""
    with without_edits(decoder.model):
        states = _states(decoder, tokenizer, requests, layer)
    lengths, wanted = (np.linalg.norm(x, axis=1, keepdims=True) for x in (goal, states))
    return goal * (wanted / lengths)**share


def _residual(decoder: Decoder, tokenizer, requests, layer: int, share: np.ndarray) -> np.ndarray:
    """Rᵀ (requests, d_out): what the MLP has to say beyond what it says, for its layer to add a
    share (requests, dim) of what is missing."""
    share = share / decoder.residual(layer)
    if not decoder.architecture.mlp_norm:
        return share
    return before_norm(decoder.module(layer, "mlp_norm"),
                       _outputs(decoder, tokenizer, requests, layer), share)


def _outputs(decoder: Decoder, tokenizer, requests, layer: int) -> np.ndarray:
    """m (requests, d_out): the MLP's output for the bare prompts."""
    texts = [(request.text, request.subject_span) for request in requests]
    return np.concatenate([read_keys(decoder, tokenizer, part, layer).outputs
                           for part in _parts(texts)])


def _states(decoder: Decoder, tokenizer, requests, layer: int) -> np.ndarray:
    """h (requests, dim): the block's output for the bare prompts."""
    texts = [(request.text, request.subject_span) for request in requests]
    return np.concatenate([read_states(decoder, tokenizer, part, layer)
                           for part in _parts(texts)])


def _parts(texts: list) -> Iterator[list]:
    for i in range(0, len(texts), _TEXTS):
        yield texts[i: i + _TEXTS]


def _earlier_keys(earlier: Sequence[Edit], path: str, matrix: np.ndarray) -> np.ndarray:
    """(d_in, m): the keys that earlier edits wrote at in a weight, each once, so that an applied
    edit and its saved copy count as one. matrix: C, as wide as they have to be."""
    keys = [edit.keys[path] for edit in earlier if path in edit.keys]
    for found in keys:
        if len(found) != len(matrix):
            raise RomeError(f"an earlier edit's keys at {path} are {len(found)} wide, this "
                            f"model's {len(matrix)}; give edits of this model")
    return np.unique(np.concatenate([matrix[:, :0], *keys], axis=1), axis=1)
