"""CounterFact's measures, exactly as the ROME paper's code takes them."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..accel.linux_cpu import fast_gates, log_sum_exp
from ..models.decoder import Decoder
from ..models.tokens import encode_with_target

GROUPS = ("rewrite", "paraphrase", "neighborhood")
#: what the score S is the harmonic mean of
SCORE = ("rewrite_success", "paraphrase_success", "neighborhood_success")
#: measures of an edited model against the unedited one, of which they say nothing
CHANGES = ("neighborhood_kept", "neighborhood_gained", "neighborhood_known_acc")

_ROWS = 64  # run at once
_SHORTEST = 0.6  # of a batch's longest row: shorter ones go into another batch


class Score(NamedTuple):
    """Of a target after a prompt: mean NLL per token, and the share of its tokens that are the
    model's first choice under teacher forcing."""

    nll: float
    right: float


def target_scores(model, tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """A Score for each (prompt, target).

    A text that begins another is not run but read off it, so that a prompt is run once for all
    of its targets of one token. Only the positions that predict a target token are read from the
    vocabulary, each once.
    """
    decoder = Decoder(model)
    encoded = [encode_with_target(tokenizer, *pair) for pair in pairs]
    inputs = [tuple(whole.ids[: end - 1]) for whole, (_, end) in encoded]
    ordered = sorted(set(inputs))
    rows = [ids for ids, after in zip(ordered, [*ordered[1:], ()], strict=True)
            if after[:len(ids)] != ids]
    reads: dict[int, list[tuple[int, int, int]]] = {}  # row -> [(pair, position, target id)]
    for i, (ids, (whole, (begin, end))) in enumerate(zip(inputs, encoded, strict=True)):
        reads.setdefault(bisect_left(rows, ids), []).extend(
            (i, t - 1, whole.ids[t]) for t in range(begin, end))
    tokens: list[list[tuple[float, bool]]] = [[] for _ in pairs]
    with fast_gates([decoder.module(i, "mlp") for i in decoder.dense_layers]):
        for batch in _batches(rows):
            wanted = [(row, *read) for row, r in enumerate(batch) for read in reads[r]]
            found = _read(decoder, [rows[r] for r in batch], [(w[0], w[2], w[3]) for w in wanted])
            for (_, i, _, _), token in zip(wanted, found, strict=True):
                tokens[i].append(token)
    return [Score(*map(float, np.mean(found, axis=0))) for found in tokens]


def _batches(rows: list[tuple[int, ...]]) -> Iterator[list[int]]:
    """Indices of rows of about one length, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and (len(batch) == _ROWS or len(rows[i]) < _SHORTEST * len(rows[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _read(decoder: Decoder, rows, reads) -> list[tuple[float, bool]]:
    """(NLL, whether it is the first choice) for each (row, position, token id)."""
    width = len(rows[0])
    h = decoder.run(decoder.enter(decoder.embed([[*ids, *[0] * (width - len(ids))]
                                                 for ids in rows])))
    at = sorted({(row, position) for row, position, _ in reads})
    number = {place: i for i, place in enumerate(at)}
    logits = decoder.logits(h[tuple(mx.array(x) for x in zip(*at, strict=True))])
    logits = logits.astype(mx.float32)  # (positions, vocabulary)
    places = mx.array([number[row, position] for row, position, _ in reads])
    targets = mx.array([token for _, _, token in reads])
    nll = log_sum_exp(logits)[places] - logits[places, targets]
    right = mx.argmax(logits, axis=-1)[places] == targets
    return list(zip(nll.tolist(), right.tolist(), strict=True))


def case_scores(model, tokenizer, case) -> dict:
    """{group: [{"target_new": NLL, "target_true": NLL, "correct": bool}]} of one case.

    correct: every token of what should be said is the argmax: the new target on rewrite and
    paraphrase prompts, the true one on neighborhood prompts.
    """
    prompts = {"rewrite": (case.request.text,), "paraphrase": case.paraphrases,
               "neighborhood": case.neighbors}
    true = {"neighborhood": case.neighbor_answer}
    pairs = [(prompt, target) for group in GROUPS for prompt in prompts[group]
             for target in (case.request.target_new, true.get(group, case.request.target_true))]
    scores = iter(target_scores(model, tokenizer, pairs))
    out = {}
    for group in GROUPS:
        out[group] = []
        for _ in prompts[group]:
            new, old = next(scores), next(scores)
            wanted = old if group == "neighborhood" else new
            out[group].append({"target_new": new.nll, "target_true": old.nll,
                               "correct": wanted.right == 1})
    return out


def case_measures(scores: dict, unedited: dict) -> dict[str, float]:
    """Percent: {group}_success, _magnitude and _acc, the mean over a case's prompts.

    success: the right target has the lower NLL; magnitude: by how much exp(−NLL) is higher; acc:
    every token of the right target is the first choice, under teacher forcing. And of neighbors,
    where the case has such:

    - neighborhood_kept: success on those with success before, and neighborhood_gained: on those
      without. They say nothing of whether the model knew: any answer may beat this target_new.
    - neighborhood_known_success and _known_acc: of those whose true answer was the model's first
      choice before.
    """
    measures = {}
    for group in GROUPS:
        if not scores[group]:
            continue
        won = [_won(group, p) for p in scores[group]]
        sign = -1 if group == "neighborhood" else 1
        magnitude = [sign * (np.exp(-p["target_new"]) - np.exp(-p["target_true"]))
                     for p in scores[group]]
        measures[f"{group}_success"] = 100 * float(np.mean(won))
        measures[f"{group}_magnitude"] = 100 * float(np.mean(magnitude))
        measures[f"{group}_acc"] = 100 * float(np.mean([p["correct"] for p in scores[group]]))
    return measures | _on_neighbors(unedited["neighborhood"], scores["neighborhood"])


def _on_neighbors(before: list[dict], after: list[dict]) -> dict[str, float]:
    """Percent of the neighbors that were so before, of each kind that there is."""
    won = [_won("neighborhood", p) for p in after]
    had = [_won("neighborhood", p) for p in before]
    known = [p["correct"] for p in before]
    right = [p["correct"] for p in after]
    shares = {"neighborhood_kept": (won, had),
              "neighborhood_gained": (won, [not h for h in had]),
              "neighborhood_known_success": (won, known), "neighborhood_known_acc": (right, known)}
    return {name: 100 * float(np.mean([v for v, of in zip(values, among, strict=True) if of]))
            for name, (values, among) in shares.items() if any(among)}


def _won(group: str, prompt: dict) -> bool:
    if group == "neighborhood":
        return prompt["target_true"] < prompt["target_new"]
    return prompt["target_true"] > prompt["target_new"]
