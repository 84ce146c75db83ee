"""v*: the MLP output that makes the model say the target (ROME paper, section 3.1, step 2).

δ changes nothing before the subject's last token and nothing below its layer. So the contexts are
run once; every step runs only their tokens from the subject's last on, from the edited layer up,
on the keys and values kept for the tokens before. Rows are aligned at the subject's last token:
what comes before it is padded on the left, what comes after on the right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..decoder import Decoder, Prefix
from ..hooks import hooked
from ..tokens import encode, encode_with_target
from .hyperparameters import Hyperparameters
from .key import in_contexts

_KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class Value:
    """δ and v0 (d_out,) float64: v* = v0 + δ; one dict of losses a step."""

    delta: np.ndarray
    initial: np.ndarray
    losses: list[dict]


@dataclass
class _Row:
    ids: list[int]  # without the target's last token, which predicts nothing that is read
    subject: int  # position of the subject's last token
    begin: int = 0  # position of the target's first token
    target: tuple[int, ...] = ()  # the target's tokens; none in the KL's row


@dataclass
class Suffixes:
    """Rows from the subject's last token on, ready to be run from the edited layer up.

    inputs: (rows, tokens, dim), what enters the layer; prefixes: of every layer of the model;
    read: row and position of every hidden state that the loss reads, the KL's last; targets: the
    token that each of them but the last should predict; weights: of each in the mean NLL.
    """

    inputs: mx.array
    prefixes: list[Prefix | None]
    read: tuple[mx.array, mx.array]
    targets: mx.array
    weights: mx.array


def optimize_value(decoder: Decoder, tokenizer, request, templates, layer: int,
                   hp: Hyperparameters, report: Callable[[dict], None] | None = None) -> Value:
    """Adam on δ, as the released code does it (ROME paper, eq. 4).

    Loss: mean over contexts of the target's NLL a token + kl_factor KL(new ‖ initial) of the next
    token after the subject in "{} is a" + v_weight_decay ‖δ‖ / ‖v0‖² (the paper squares ‖δ‖).
    The last step computes its loss and moves no more. `report` gets each step's losses.
    """
    suffixes = _suffixes(decoder, _rows(tokenizer, request, templates), layer)
    initial = _initial_output(decoder, suffixes, layer)
    scale = mx.linalg.norm(initial)
    before = _log_probabilities(decoder, suffixes, layer, mx.zeros_like(initial))[-1]
    mx.eval(before, initial)

    def loss(delta):
        log_p = _log_probabilities(decoder, suffixes, layer, delta)
        chosen = mx.take_along_axis(log_p[:-1], suffixes.targets[:, None], axis=1)[:, 0]
        nll = -(chosen * suffixes.weights).sum()
        kl = hp.kl_factor * (mx.exp(log_p[-1]) * (log_p[-1] - before)).sum()
        decay = hp.v_weight_decay * _norm(delta) / scale**2
        return nll + kl + decay, (nll, kl, decay, chosen)

    step = mx.value_and_grad(loss)
    delta, optimizer, losses = mx.zeros_like(initial), _adam(hp.v_lr), []
    for i in range(hp.v_num_grad_steps):
        (total, (nll, kl, decay, chosen)), gradient = step(delta)
        mx.eval(total, nll, kl, decay, chosen, gradient)
        losses.append({"step": i, "total": total.item(), "nll": nll.item(), "kl": kl.item(),
                       "decay": decay.item(),
                       "probability": _mean_probability(chosen, suffixes.weights)})
        if report is not None:
            report(losses[-1])
        if total.item() < hp.v_stop or i == hp.v_num_grad_steps - 1:
            break
        delta = optimizer.apply_gradients({"delta": gradient}, {"delta": delta})["delta"]
        delta = delta * mx.minimum(1.0, hp.clamp_norm_factor * scale / mx.linalg.norm(delta))
    return Value(np.array(delta, np.float64), np.array(initial, np.float64), losses)


def _adam(rate: float) -> optim.Adam:
    """PyTorch's Adam: without the bias correction the direction found is another one."""
    return optim.Adam(learning_rate=rate, bias_correction=True)


def _norm(x: mx.array) -> mx.array:
    """‖x‖ with gradient 0 at 0."""
    return mx.sqrt(mx.maximum((x * x).sum(), 1e-30))


def _mean_probability(log_probabilities: mx.array, weights: mx.array) -> float:
    return float((mx.exp(log_probabilities) * weights).sum())


def _rows(tokenizer, request, templates) -> list[_Row]:
    rows = []
    for text, span in in_contexts(request, templates):
        whole, (begin, end) = encode_with_target(tokenizer, text, request.target_new)
        rows.append(_Row(whole.ids[: end - 1], whole.range(*span)[1] - 1, begin,
                         tuple(whole.ids[begin:end])))
    text = _KL_PROMPT.replace("{}", request.subject)
    encoded = encode(tokenizer, text)
    rows.append(_Row(encoded.ids, encoded.range(0, len(request.subject))[1] - 1))
    return rows


def _suffixes(decoder: Decoder, rows: list[_Row], layer: int) -> Suffixes:
    """Run every row once in full, and keep what the steps need."""
    width = max(len(row.ids) for row in rows)
    ids = mx.array([row.ids + [0] * (width - len(row.ids)) for row in rows])
    recorded = decoder.prefixes()
    h = decoder.run(decoder.enter(decoder.embed(ids)), 0, layer, recorded)
    decoder.run(h, layer, None, recorded)

    longest = max(row.subject for row in rows)
    tokens = max(len(row.ids) - row.subject for row in rows)
    index = mx.array([[min(row.subject + i, width - 1) for i in range(tokens)] for row in rows])
    inputs = mx.take_along_axis(h, index[..., None], axis=1)
    padding = mx.array([longest - row.subject for row in rows])
    before = mx.array([[max(0, i - (longest - row.subject)) for i in range(longest)]
                       for row in rows])[:, None, :, None]
    prefixes = [None] * layer + [
        Prefix(*(mx.take_along_axis(x, before, axis=2) for x in prefix.new), padding)
        if longest else Prefix() for prefix in recorded[layer:]]
    mx.eval(inputs, [(p.keys, p.values) for p in prefixes[layer:] if longest])

    reads = [(i, row.begin - 1 + j - row.subject)
             for i, row in enumerate(rows) for j in range(len(row.target))]
    reads.append((len(rows) - 1, 0))  # the KL is read at the subject's last token
    weights = [1 / len(row.target) / (len(rows) - 1) for row in rows for _ in row.target]
    return Suffixes(inputs, prefixes, tuple(mx.array(x) for x in zip(*reads, strict=True)),
                    mx.array([t for row in rows for t in row.target]), mx.array(weights))


def _initial_output(decoder: Decoder, suffixes: Suffixes, layer: int) -> mx.array:
    """v0 (d_out,): the MLP's output at the subject's last token in the first context."""
    seen = []

    def keep(out):
        seen.append(out[0, 0].astype(mx.float32))
        return out

    with hooked(decoder.module(layer, "mlp"), after=keep):
        decoder.block(layer, suffixes.inputs[:1], _first_row(suffixes.prefixes[layer]))
    return seen[0]


def _first_row(prefix: Prefix) -> Prefix:
    if prefix.keys is None:
        return Prefix()
    return Prefix(prefix.keys[:1], prefix.values[:1], prefix.padding[:1])


def _log_probabilities(decoder: Decoder, suffixes: Suffixes, layer: int,
                       delta: mx.array) -> mx.array:
    """Log-probabilities (read, vocabulary) with δ added to the MLP's output in every row."""

    def add(out):
        first = out[:, :1] + delta.astype(out.dtype)
        return mx.concatenate([first, out[:, 1:]], axis=1)

    with hooked(decoder.module(layer, "mlp"), after=add):
        h = decoder.block(layer, suffixes.inputs, suffixes.prefixes[layer])
    h = decoder.run(h, layer + 1, None, suffixes.prefixes)
    logits = decoder.logits(h[suffixes.read]).astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
