"""CounterFact's measures, exactly as the ROME paper's code takes them."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..decoder import Decoder
from ..tokens import encode_with_target

_ROWS = 16
GROUPS = ("rewrite", "paraphrase", "neighborhood")


def target_scores(model, tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(mean NLL a token of the target, whether every token is the argmax) for (prompt, target).

    Only the positions that predict a target token are read from the vocabulary.
    """
    decoder = Decoder(model)
    encoded = [encode_with_target(tokenizer, *pair) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0].ids))
    out: list = [None] * len(pairs)
    for start in range(0, len(order), _ROWS):
        group = order[start: start + _ROWS]
        for i, score in zip(group, _scores(decoder, [encoded[i] for i in group]), strict=True):
            out[i] = score
    return out


def _scores(decoder: Decoder, encoded) -> list[tuple[float, bool]]:
    width = max(end - 1 for _, (_, end) in encoded)
    rows = [(e.ids[: end - 1] + [0] * width)[:width] for e, (_, end) in encoded]
    h = decoder.run(decoder.enter(decoder.embed(rows)))
    read = [(i, t - 1) for i, (_, (begin, end)) in enumerate(encoded) for t in range(begin, end)]
    index = tuple(mx.array(x) for x in zip(*read, strict=True))
    targets = mx.array([t for e, (begin, end) in encoded for t in e.ids[begin:end]])
    logits = decoder.logits(h[index]).astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    nll = np.array(mx.logsumexp(logits, axis=-1) - chosen, np.float64)
    right = np.array(mx.argmax(logits, axis=-1) == targets)
    ends = np.cumsum([end - begin for _, (begin, end) in encoded])
    return [(float(n.mean()), bool(r.all()))
            for n, r in zip(np.split(nll, ends[:-1]), np.split(right, ends[:-1]), strict=True)]


def case_scores(model, tokenizer, case) -> dict:
    """{group: [{"target_new": NLL, "target_true": NLL, "correct": bool}]} of one case.

    correct: every token of what should be said is the argmax: the new target on rewrite and
    paraphrase prompts, the true one on neighborhood prompts.
    """
    prompts = {"rewrite": (case.request.text,), "paraphrase": case.paraphrases,
               "neighborhood": case.neighbors}
    targets = (case.request.target_new, case.request.target_true)
    pairs = [(prompt, target) for group in GROUPS for prompt in prompts[group]
             for target in targets]
    scores = iter(target_scores(model, tokenizer, pairs))
    out = {}
    for group in GROUPS:
        out[group] = []
        for _ in prompts[group]:
            (new, new_right), (true, true_right) = next(scores), next(scores)
            out[group].append({"target_new": new, "target_true": true,
                               "correct": true_right if group == "neighborhood" else new_right})
    return out


def case_measures(scores: dict, unedited: dict) -> dict[str, float]:
    """Percent: {group}_success, _magnitude and _acc, the mean over a case's prompts.

    success: the right target has the lower NLL; magnitude: by how much exp(−NLL) is higher.
    neighborhood_known_success: over the neighbors that the unedited model gets right.
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
    known = [_won("neighborhood", after) for before, after
             in zip(unedited["neighborhood"], scores["neighborhood"], strict=True)
             if _won("neighborhood", before)]
    if known:
        measures["neighborhood_known_success"] = 100 * float(np.mean(known))
    return measures


def _won(group: str, prompt: dict) -> bool:
    if group == "neighborhood":
        return prompt["target_true"] < prompt["target_new"]
    return prompt["target_true"] > prompt["target_new"]
