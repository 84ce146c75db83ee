"""ROME: one fact by a rank-one update (ROME paper, section 3.1), and its two repairs.

r-ROME (2403.07175) reads the update's key and output over the same contexts as everything else;
p-ROME reads all of them on the bare prompt. The released ROME code mixes the two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ...errors import RomeError
from ...facts import EditRequest
from ...models.decoder import Decoder
from ...moments.lookup import find_moments
from ..edit import Edit, provenance
from ..hyperparameters import ValueHyperparameters, named
from ..key import in_contexts, read_keys
from ..lowrank import LowRank
from ..method import Method
from ..requests import check_request
from ..templates import check_templates
from ..templates import context_templates as sample_templates
from ..value import optimize_values

_BARE = ["{}"]
#: where the bare prompt's key fits the update's direction by less than this part of the mean
#: key, an update for it would be too strong for every other text; see docs/limits.md
FIT = 0.3


@dataclass(frozen=True)
class Hyperparameters(ValueHyperparameters):
    """Of ROME, r-ROME and p-ROME.

    layer: the layer to edit, or None where nothing says which; ridge: added to C's diagonal, as a
    fraction of its mean; context_lengths: of the templates that are sampled beside the bare
    prompt, (how many, of how many tokens).
    """

    layer: int | None = None
    ridge: float = 0.0
    context_lengths: tuple[tuple[int, int], ...] = ((10, 5), (10, 10))

    @property
    def contexts(self) -> int:
        """How many a value is taken in: the templates and the bare prompt."""
        return 1 + sum(count for count, _ in self.context_lengths)


#: good on every model tried, and five times faster than the published steps; see docs/editing.md
_BALL = {"v_rule": "ball", "v_lr": 0.7, "v_num_grad_steps": 10, "clamp_norm_factor": 2.0,
         "context_lengths": ((1, 10), (2, 20))}
_COMMON = Hyperparameters(layer=5, v_num_grad_steps=25, v_weight_decay=1e-3)
PRESETS = named({
    "gpt2-xl": Hyperparameters(layer=17),
    "gpt2-medium": Hyperparameters(layer=8, clamp_norm_factor=3.0),
    "gpt2-large": Hyperparameters(layer=12),
    "gpt-j": Hyperparameters(layer=5),
    "gpt-neox": Hyperparameters(layer=15),
    "llama-2-7b": _COMMON, "llama-3-8b": _COMMON, "mistral-7b": _COMMON, "qwen2.5-7b": _COMMON,
    "smollm2-135m": Hyperparameters(layer=5, **_BALL),  # by benchmarks/sweep.py
    "gemma-3-270m": Hyperparameters(  # by rome-mlx calibrate; see docs/layers.md
        layer=2, **_BALL | {"clamp_norm_factor": 1.0}),
})


def rome(model, tokenizer, request: EditRequest, layer: int | None = None, *, moments=None,
         context_templates=None, hyperparameters=None, seed: int = 0,
         report: Callable[[dict], None] | None = None) -> Edit:
    """Write one fact into one layer (ROME paper, eq. 2). The model is left as it was.

    Where a norm follows the MLP, v* is made as long as the output it replaces: the norm gives the
    same for it, and the weight changes less.

    Where the subject is the first token of the prompt, its key there may be no subject's key at
    all. If it fits the update's direction by less than 0.3 of the mean key, as details["fit"] then
    says, the update is `r_rome`'s: the authors' would be as many times too strong.

    layer: by default the preset's, where the model has one; moments: as `second_moments` gives
    them, a directory, {layer: (d_in, d_in)}, or None for stored ones; context_templates: texts
    that end in `{}`, sampled from the model with `seed` if None; hyperparameters: None for the
    model's preset, "published", a preset's name, a dictionary, or a Hyperparameters; report:
    called with each step's losses.
    Raises RomeError for anything out of range and where there are no moments.
    """
    return _rank_one("rome", model, tokenizer, request, layer, moments, context_templates,
                     hyperparameters, seed, report)


def r_rome(model, tokenizer, request: EditRequest, layer: int | None = None, *, moments=None,
           context_templates=None, hyperparameters=None, seed: int = 0,
           report: Callable[[dict], None] | None = None) -> Edit:
    """ROME with key and output averaged over all contexts in the update too (2403.07175)."""
    return _rank_one("r-rome", model, tokenizer, request, layer, moments, context_templates,
                     hyperparameters, seed, report)


def p_rome(model, tokenizer, request: EditRequest, layer: int | None = None, *, moments=None,
           context_templates=None, hyperparameters=None, seed: int = 0,
           report: Callable[[dict], None] | None = None) -> Edit:
    """ROME with the key of the bare prompt everywhere (2403.07175)."""
    return _rank_one("p-rome", model, tokenizer, request, layer, moments, context_templates,
                     hyperparameters, seed, report)


#: method -> (contexts of the direction's key, contexts of the update's key and output),
#: True for all of them, False for the bare prompt
_CONTEXTS = {"rome": (True, False), "r-rome": (True, True), "p-rome": (False, False)}


def _rank_one(method, model, tokenizer, request, layer, moments, templates, hyperparameters, seed,
              report) -> Edit:
    return rank_one_edits(method, model, tokenizer, [check_request(request)], layer,
                          moments=moments, context_templates=templates,
                          hyperparameters=hyperparameters, seed=seed, report=report)[0]


def rank_one_edits(method: str, model, tokenizer, requests, layer: int | None = None, *,
                   moments=None, context_templates=None, hyperparameters=None, seed: int = 0,
                   report: Callable[[dict], None] | None = None) -> list[Edit]:
    """An edit for each request, each of the model as it is now: `rome`, `r_rome` or `p_rome` of
    requests side by side. Arguments and errors as theirs."""
    decoder = Decoder(model)
    hp = ROME.resolve(hyperparameters, decoder)
    if layer is None and hp.layer is None:
        raise RomeError("say which layer to edit, such as layer=5; rm.locate_then_edit finds one")
    layer = decoder.check_layer(hp.layer if layer is None else layer)
    given = find_moments(model, tokenizer, [layer], moments)
    templates = (rome_templates(model, tokenizer, seed, hp) if context_templates is None
                 else check_templates(context_templates))

    contexts = templates if "{}" in templates else [*_BARE, *templates]
    texts = [text for request in requests for text in in_contexts(request, contexts)]
    keys, outputs = (x.reshape(len(requests), len(contexts), -1)
                     for x in read_keys(decoder, tokenizer, texts, layer))
    bare = [contexts.index("{}")]
    everywhere = list(range(len(contexts) - len(templates), len(contexts)))
    for_direction, for_update = (everywhere if all_contexts else bare
                                 for all_contexts in _CONTEXTS[method])

    directions = inverse_direction(given.matrix(layer), keys[:, for_direction].mean(1), hp.ridge)
    fits = fit(keys[:, for_update].mean(1), keys[:, for_direction].mean(1), directions)
    values = optimize_values(decoder, tokenizer, requests, templates, layer, hp, report=report)
    path = decoder.path(layer, "down")
    about, edits = provenance(model, tokenizer, [path]), []
    for i, (request, value) in enumerate(zip(requests, values, strict=True)):
        read = for_update if fits[i] >= FIT else everywhere
        target, output = value.initial + value.delta, outputs[i, read].mean(0)
        if decoder.architecture.mlp_norm:  # which sees where the value points, not how long it is
            target *= np.linalg.norm(output) / np.linalg.norm(target)
        right, left = rank_one_update(keys[i, read].mean(0), directions[i], target, output)
        edits.append(Edit(
            method=method, requests=[request],
            deltas={path: LowRank(left[:, None], right[None, :])}, layers=[layer],
            hyperparameters=hp, context_templates=templates, losses=value.losses, seed=seed,
            details={"fit": float(fits[i])} if fits[i] < FIT else {},
            moments=given.used, **about))
    return edits


def fit(key, mean, direction) -> np.ndarray:
    """How well keys (n, d_in) fit the directions, in parts of how well the mean keys do."""
    return np.sum(key * direction, axis=1) / np.sum(mean * direction, axis=1)


def inverse_direction(matrix: np.ndarray, key: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """u = C⁻¹k / ‖C⁻¹k‖, by Cholesky in float64, for a key (d_in,) or several (n, d_in).

    ridge: added to C's diagonal, as a fraction of its mean. Raises RomeError for a C that is not
    positive definite.
    """
    held = np.array(matrix)  # the one copy, which its own factor replaces
    held[np.diag_indices_from(held)] += ridge * np.trace(matrix) / len(matrix)
    try:
        solved = cho_solve(cho_factor(held.T, overwrite_a=True), key.T).T
    except (LinAlgError, ValueError) as error:
        raise RomeError("the second moment is not positive definite: it was counted on too few "
                        "tokens; count more, or give the hyperparameter ridge, such as 1e-4"
                        ) from error
    return solved / np.linalg.norm(solved, axis=-1, keepdims=True)


def rank_one_update(key, direction, value, output) -> tuple[np.ndarray, np.ndarray]:
    """(right, left) with ΔW = right leftᵀ, so that (W + ΔW) key == value where W key == output,
    and keys orthogonal to the direction C⁻¹k* stay put (ROME paper, eq. 2).

    key, direction: (d_in,); value, output: (d_out,); float64. Raises RomeError when key and
    direction are orthogonal.
    """
    along = float(key @ direction)
    if abs(along) < 1e-8 * np.linalg.norm(key):
        raise RomeError("the subject's key is orthogonal to the update's direction; "
                        "give other context templates or moments")
    return (value - output) / along, direction


def rome_templates(model, tokenizer, seed: int, hp) -> list[str]:
    return sample_templates(model, tokenizer, seed, hp.context_lengths)


ROME = Method("rome", rome, PRESETS, rome_templates, one_by_one=True, elsewhere=_BALL)
R_ROME = Method("r-rome", r_rome, PRESETS, rome_templates, one_by_one=True, elsewhere=_BALL)
P_ROME = Method("p-rome", p_rome, PRESETS, rome_templates, one_by_one=True, elsewhere=_BALL)
