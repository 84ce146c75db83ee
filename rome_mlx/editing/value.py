"""v*: the output that makes the model say the target (ROME paper, section 3.1, step 2).

δ changes nothing before the subject's last token and nothing below its layer. So the contexts are
run once; every step runs only their tokens from the subject's last on, above the edited layer, on
the keys and values kept for the tokens before, and the last layer's MLP only where it is read. Rows
are aligned at the subject's last token: what comes before it is padded on the left, what comes
after on the right. Requests are optimised together, each with a δ of its own, and leave the batch
when they stop.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..accel.linux_cpu import fast_rotations
from ..models.decoder import Decoder, Prefix, aligned
from ..models.hooks import hooked
from ..models.probabilities import chosen_log_probabilities, log_probabilities
from ..models.tokens import encode, encode_with_target
from .hyperparameters import ValueHyperparameters
from .key import in_contexts
from .step_rules import STEP_RULES

_KL_PROMPT = "{} is a"
AT_ONCE = 32  # requests; bounds the logits held at once
_LOSSES = ("total", "nll", "kl", "decay", "probability")


@dataclass(frozen=True)
class Value:
    """δ and v0 (d_out,) float64: v* = v0 + δ; one dict of losses a step."""

    delta: np.ndarray
    initial: np.ndarray
    losses: list[dict]


@dataclass(frozen=True)
class _Row:
    request: int
    ids: list[int]  # without the target's last token, which predicts nothing that is read
    subject: int  # position of the subject's last token
    begin: int = 0  # position of the target's first token
    target: tuple[int, ...] = ()  # the target's tokens; none in a row of the KL alone
    kl: bool = False  # whether the KL is read here, after the subject


@dataclass
class Suffixes:
    """Rows from the subject's last token on, ready to be run from the edited layer up.

    For one request, "The Eiffel Tower is in" → "New York", in two contexts; · is padding:

        kept in `prefixes`                 `inputs`, run in every step
        ·      ·   ·   ·  The  Eiffel  |   Tower   is   in   New
        It is  so  .      The  Eiffel  |   Tower   is   in   New
                                           δ, KL         ↑     ↑
                                              `read`: predicts New, predicts York

    inputs, outputs: (rows, tokens, dim), of the layer without δ; prefixes: of every layer of the
    model; owner: the request of each row; read: row and position of every hidden state that the
    loss reads, one for each target token and then the KL's, one per request; targets: the token
    that each of the first should predict; weights: (requests, targets), of each in a request's
    NLL.
    """

    rows: list[_Row]
    inputs: mx.array
    outputs: mx.array
    prefixes: list[Prefix | None]
    owner: mx.array
    read: tuple[mx.array, mx.array]
    targets: mx.array
    weights: mx.array


def optimize_values(decoder: Decoder, tokenizer, requests: Sequence, templates, layer: int,
                    hp: ValueHyperparameters, part: str = "mlp",
                    report: Callable[[dict], None] | None = None) -> list[Value]:
    """Descend on a δ for each request; with Adam as the released code does (ROME paper, eq. 4).

    A request's loss: mean over contexts of the target's NLL per token + kl_factor KL(new ‖ initial)
    of the next token after the subject in "{} is a" + v_weight_decay ‖δ‖ / ‖v0‖² (the paper
    squares ‖δ‖). The last step computes its loss and moves no more; a request whose loss is below
    v_stop moves no more. part: whose output δ is added to, "mlp" (ROME) or "hidden" (MEMIT).
    report: called with each step's losses, the mean over the requests of a batch.
    """
    values = []
    with decoder.fast(), \
            fast_rotations(decoder.model):
        for i in range(0, len(requests), AT_ONCE):
            batch = requests[i: i + AT_ONCE]
            rows = _rows(tokenizer, batch, templates)
            suffixes, unedited = _suffixes(decoder, rows, layer, part)
            values += _optimize(decoder, suffixes, unedited, layer, hp, part, report)
    return values


def mean_losses(values: Sequence[Value]) -> list[dict]:
    """One dict a step, the mean over requests; one that has stopped counts with its last."""
    return [{"step": i, **{name: float(np.mean([v.losses[min(i, len(v.losses) - 1)][name]
                                                for v in values])) for name in _LOSSES}}
            for i in range(max(len(v.losses) for v in values))]


def _optimize(decoder, suffixes, unedited, layer, hp, part, report) -> list[Value]:
    rule, initial = STEP_RULES[hp.v_rule](hp.v_lr), mx.stack([v[0] for v in unedited])
    scale, before = rule.scale(unedited), None
    delta = mx.zeros_like(initial)
    active = list(range(len(initial)))
    values = [Value(np.zeros(initial.shape[1]), np.array(v, np.float64), []) for v in initial]

    for i in range(hp.v_num_grad_steps):
        def loss(delta, suffixes=suffixes, scale=scale, before=before):
            parts, log_p = _losses(decoder, suffixes, layer, delta, part, scale, before, hp)
            return parts[0].sum(), parts, log_p

        last = i == hp.v_num_grad_steps - 1
        (_, parts, log_p), gradient = (loss(delta), None) if last \
            else mx.value_and_grad(loss)(delta)
        before = log_p if before is None else before
        mx.eval(*parts, before)  # the gradient only where it is used
        for request, *numbers in zip(active, *(x.tolist() for x in parts), strict=True):
            values[request].losses.append(
                {"step": i, **dict(zip(_LOSSES, numbers, strict=True))})
        if report is not None:
            report(mean_losses(values)[-1])
        going = [j for j, total in enumerate(parts[0].tolist()) if total >= hp.v_stop]
        if not going or last:
            break
        if len(going) < len(active):
            suffixes, keep = _only(suffixes, going), mx.array(going)
            active = [active[j] for j in going]
            delta, gradient, scale, before = (x[keep] for x in (delta, gradient, scale, before))
            rule.only(keep)
        radius = hp.clamp_norm_factor * scale[:, None]
        delta = rule.step(delta, gradient, radius)
        delta = delta * mx.minimum(1.0, radius / mx.linalg.norm(delta, axis=1, keepdims=True))
        for request, moved in zip(active, np.array(delta, np.float64), strict=True):
            values[request] = replace(values[request], delta=moved)
    return values


def _losses(decoder, suffixes, layer, delta, part, scale, before,
            hp) -> tuple[tuple[mx.array, ...], mx.array]:
    """(total, NLL, KL, decay and the target's mean probability, each (requests,)), and log P after
    the KL's rows (requests, vocabulary): `before` of the later steps, which has none at the first.
    """
    logits = _logits(decoder, suffixes, layer, delta, part)
    count = len(suffixes.targets)
    chosen = chosen_log_probabilities(logits[:count], suffixes.targets)
    log_p = log_probabilities(logits[count:])
    before = mx.stop_gradient(log_p) if before is None else before
    nll = -(suffixes.weights @ chosen)
    kl = hp.kl_factor * (mx.exp(log_p) * (log_p - before)).sum(axis=1)
    decay = hp.v_weight_decay * _norms(delta) / scale**2
    probability = suffixes.weights @ mx.exp(chosen)
    return (nll + kl + decay, nll, kl, decay, probability), log_p


def _norms(x: mx.array) -> mx.array:
    """‖x‖ of every row, with gradient 0 at 0."""
    return mx.sqrt(mx.maximum((x * x).sum(axis=1), 1e-30))


def _rows(tokenizer, requests, templates) -> list[_Row]:
    """The contexts of every request, and a row for the KL where none begins as it does."""
    rows = []
    for i, request in enumerate(requests):
        mine = []
        for text, span in in_contexts(request, templates):
            whole, (begin, end) = encode_with_target(tokenizer, text, request.target_new)
            mine.append(_Row(i, whole.ids[: end - 1], whole.range(*span)[1] - 1, begin,
                             tuple(whole.ids[begin:end])))
        encoded = encode(tokenizer, _KL_PROMPT.replace("{}", request.subject))
        subject = encoded.range(0, len(request.subject))[1] - 1
        alone = encoded.ids[: subject + 1]  # what comes after is not read
        same = [j for j, row in enumerate(mine) if row.ids[: row.subject + 1] == alone
                and row.begin > row.subject + 1]  # no state is read twice
        if same:
            mine[same[0]] = replace(mine[same[0]], kl=True)
        else:
            mine.append(_Row(i, alone, subject, kl=True))
        rows += mine
    return rows


def _suffixes(decoder: Decoder, rows: list[_Row], layer: int,
              part: str) -> tuple[Suffixes, list[mx.array]]:
    """What the steps need of every row, and of each request (contexts, d_out) float32: the part's
    output at the subject's last token. The first is v0."""
    width = max(len(row.ids) for row in rows)
    ids = mx.array([row.ids + [0] * (width - len(row.ids)) for row in rows])
    longest = max(row.subject for row in rows)
    recorded = decoder.prefixes()
    h = decoder.run(decoder.enter(decoder.embed(ids)), 0, layer)
    if longest:
        decoder.run(h[:, :longest], layer, None, recorded)

    tokens = max(len(row.ids) - row.subject for row in rows)
    index = mx.array([[min(row.subject + i, width - 1) for i in range(tokens)] for row in rows])
    inputs = mx.take_along_axis(h, index[..., None], axis=1)
    prefixes = [None] * layer + (
        aligned(recorded[layer:], [row.subject for row in rows]) if longest
        else [Prefix() for _ in recorded[layer:]])

    outputs, changed = _outputs(decoder, inputs, prefixes[layer], layer, part)
    contexts: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.target:
            contexts.setdefault(row.request, []).append(i)
    unedited = [changed[mx.array(mine), 0].astype(mx.float32) for mine in contexts.values()]
    mx.eval(inputs, outputs, unedited, [(p.keys, p.values) for p in prefixes[layer:] if longest])
    return _ready(rows, inputs, outputs, prefixes), unedited


def _outputs(decoder, inputs, prefix, layer, part) -> tuple[mx.array, mx.array]:
    """(the layer's output, the output of its part), each (rows, tokens, dim)."""
    seen = []

    def keep(out):
        seen.append(out)
        return out

    if part == "hidden":
        out = decoder.block(layer, inputs, prefix)
        return out, out
    with hooked(decoder.module(layer, part), after=keep):
        return decoder.block(layer, inputs, prefix), seen[0]


def _ready(rows: list[_Row], inputs: mx.array, outputs: mx.array, prefixes) -> Suffixes:
    contexts = Counter(row.request for row in rows if row.target)
    reads, owners, weights = [], [], []
    for i, row in enumerate(rows):
        reads += [(i, row.begin - 1 + j - row.subject) for j in range(len(row.target))]
        owners += [row.request] * len(row.target)
        weights += [1 / len(row.target) / contexts[row.request] for _ in row.target]
    table = np.zeros((len(contexts), len(reads)), np.float32)
    table[owners, range(len(reads))] = weights
    reads += [(i, 0) for i, row in enumerate(rows) if row.kl]
    return Suffixes(rows, inputs, outputs, prefixes, mx.array([row.request for row in rows]),
                    tuple(mx.array(x) for x in zip(*reads, strict=True)),
                    mx.array([t for row in rows for t in row.target]), mx.array(table))


def _only(suffixes: Suffixes, requests: list[int]) -> Suffixes:
    """The suffixes of some requests, numbered anew from 0."""
    number = {request: i for i, request in enumerate(requests)}
    at = [i for i, row in enumerate(suffixes.rows) if row.request in number]
    rows = [replace(suffixes.rows[i], request=number[suffixes.rows[i].request]) for i in at]
    index = mx.array(at)
    return _ready(rows, suffixes.inputs[index], suffixes.outputs[index],
                  [p and _prefix_rows(p, index) for p in suffixes.prefixes])


def _prefix_rows(prefix: Prefix, index: mx.array) -> Prefix:
    if prefix.keys is None:
        return Prefix()
    return Prefix(prefix.keys[index], prefix.values[index], prefix.padding[index])


def _logits(decoder: Decoder, suffixes: Suffixes, layer: int, delta: mx.array,
            part: str) -> mx.array:
    """Logits (read, vocabulary) float32 with each request's δ (requests, d_out) added to the
    output of the layer's `part` in its rows."""
    last, read = len(decoder.layers) - 1, suffixes.read
    h = _edited(decoder, suffixes, layer, delta[suffixes.owner], part)
    h = decoder.run(h, layer + 1, last, suffixes.prefixes)
    if layer < last:
        def back(out):
            return mx.zeros((*h.shape[:2], out.shape[-1]), out.dtype).at[read].add(out[:, 0])

        with hooked(decoder.module(last, "mlp"), before=lambda x: x[read][:, None], after=back):
            h = decoder.block(last, h, suffixes.prefixes[last])
    return decoder.logits(h[read]).astype(mx.float32)


def _edited(decoder, suffixes, layer, delta, part) -> mx.array:
    """The layer's output with δ (rows, d_out) added to its part's."""

    def add(out, scale=1.0):
        first = out[:, :1] + scale * delta[:, None].astype(out.dtype)
        return mx.concatenate([first, out[:, 1:]], axis=1)

    if part == "mlp" and decoder.architecture.mlp_norm:
        with hooked(decoder.module(layer, "mlp"), after=add):
            return decoder.block(layer, suffixes.inputs, suffixes.prefixes[layer])
    return add(suffixes.outputs, 1.0 if part == "hidden" else decoder.residual(layer))
