"""An edit as changes of a quantized weight's own codes: the same file, as large and as fast.

W stays scales · codes + biases, group by group. For every row, whose scales are s and which the
edit is to change by Δ, find whole steps n of its codes that minimise

    (s∘n - Δ)ᵀ H (s∘n - Δ),    H = C + μ Σ k kᵀ

over the edit's keys k: what the row gives for text, by C, and, μ times as heavy, for the fact.
First Δ is rounded, which leaves text nearly as the edit does and loses much of the fact: of a few
multiples of Δ the one whose rounding loses least. Then one code moves at a time, the one that gains
most, by as many steps as gain most; what the others want follows by one row of H. Rows end by
themselves: each step lowers what is minimised.
"""

from dataclasses import replace

import numpy as np

from ..errors import RomeError
from ..models import applied
from ..models.codes import check_codes, codes_of, digest_of, scales_of, steps_of
from ..models.decoder import Decoder
from ..moments.lookup import find_moments
from .key import in_contexts, read_keys
from .lowrank import LowRank

KEYS = 0.01  # μ
_LEAST = 3e-6  # of what a row had to be moved by: a step that gains less is not taken
_MULTIPLES = np.array([1, 1.25, 1.5, 2, 2.5, 3])


def quantized(edit, model, tokenizer, *, moments=None, keys: float = KEYS):
    """What `Edit.quantized` gives. keys: μ."""
    if edit.in_codes:
        raise RomeError("this edit changes codes already; apply or save it as it is")
    with edit.applied(model):  # every check that applying makes
        pass
    decoder = Decoder(model)
    layers = decoder.down_paths
    if others := sorted(set(edit.deltas) - set(layers)):
        raise RomeError(f"{others[0]} is no down projection, of which alone codes are changed; "
                        f"use an editor such as rome, not {edit.method}")
    for path in edit.deltas:
        check_codes(applied.original(model, path), path)
    given = find_moments(model, tokenizer, [layers[path] for path in edit.deltas], moments)
    deltas = {}
    for path, delta in edit.deltas.items():
        now = applied.coded(model, path)
        found = _keys(edit, path, decoder, tokenizer, layers[path])
        metric = given.matrix(layers[path]) + keys * found @ found.T
        scales = scales_of(now)
        steps = nearest(delta, found, metric, codes_of(now), scales, 2**now.bits - 1)
        deltas[path] = steps_of(steps, scales, digest_of(applied.original(model, path)))
    return replace(edit, deltas=deltas, numbers={})


def nearest(change: LowRank, keys: np.ndarray, metric: np.ndarray, codes: np.ndarray,
            scales: np.ndarray, most: int) -> np.ndarray:
    """n (out, in) whole numbers for which scales · n is near W's `change` by `metric` (in, in),
    at the keys (in, k) above all, and codes + n from 0 to `most`."""
    pull, search = change.a.T @ metric, _Search(metric)
    steps = np.empty(codes.shape, np.int16)
    for row, b in enumerate(change.b.T):
        s, bounds = scales[row], (-codes[row], most - codes[row])
        towards, whole = b @ pull, change.a @ b  # half the gradient where no code has moved, and Δ
        inverse = np.divide(1, s, out=np.zeros(s.shape), where=s != 0)
        tries = np.clip(np.rint(np.outer(_MULTIPLES, whole * inverse)), *bounds)
        lost = ((tries * s - whole) @ keys)**2
        steps[row] = search.row(tries[lost.sum(1).argmin()], towards, s, inverse, bounds,
                                _LEAST * float(towards @ whole))
    return steps


class _Search:
    """One code at a time, in float32.

    slopes (in, in): by how many steps, each of scale 1, one of a code draws the others.
    """

    def __init__(self, metric: np.ndarray):
        self.diagonal = np.diag(metric)
        self.slopes = np.empty(metric.shape, np.float32)
        np.divide(metric, self.diagonal, out=self.slopes, casting="same_kind")

    def row(self, start, towards, scales, inverse, bounds, least: float) -> np.ndarray:
        """The steps (in,) of one row from `start` on, within the bounds, until none lowers what is
        minimised by more than `least`; inverse: 1 / scales, 0 where that is 0."""
        wanted = np.float32(towards * inverse / self.diagonal)  # by each code, moved alone
        weights = np.float32(scales * scales * self.diagonal)
        scales, inverse = np.float32(scales), np.float32(inverse)
        begun = np.flatnonzero(start)
        wanted -= inverse * (np.float32(start[begun] * scales[begun]) @ self.slopes[begun])
        low, high = (np.float32(bound - start) for bound in bounds)
        n, gain = np.empty_like(wanted), np.empty_like(wanted)
        while True:
            np.rint(wanted, out=n)
            np.minimum(np.maximum(n, low, out=n), high, out=n)
            np.add(wanted, wanted, out=gain)  # n of them gain weights · n (2 wanted - n)
            gain -= n
            gain *= n
            gain *= weights
            best = int(gain.argmax())
            if not gain[best] > least:
                return np.int16(bounds[0] - low)
            moved = n[best]
            low[best] -= moved
            high[best] -= moved
            np.multiply(self.slopes[best], inverse, out=gain)
            gain *= moved * scales[best]
            wanted -= gain


def _keys(edit, path: str, decoder: Decoder, tokenizer, layer: int) -> np.ndarray:
    """(d_in, n): the keys that the edit wrote at, or those of its requests in all contexts, which
    count as one a request."""
    if path in edit.keys:
        return edit.keys[path]
    contexts = edit.context_templates or ["{}"]
    texts = [text for request in edit.requests for text in in_contexts(request, contexts)]
    return read_keys(decoder, tokenizer, texts, layer).keys.T / np.sqrt(len(contexts))
