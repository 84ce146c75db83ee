"""CounterFact's measures, exactly as the ROME paper's code takes them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..models.probabilities import token_scores

GROUPS = ("rewrite", "paraphrase", "neighborhood")
#: what the score S is the harmonic mean of
SCORE = ("rewrite_success", "paraphrase_success", "neighborhood_success")
#: measures of an edited model against the unedited one, of which they say nothing
CHANGES = ("neighborhood_kept", "neighborhood_gained", "neighborhood_known_acc")


class Score(NamedTuple):
    """Of a target after a prompt: mean NLL per token, and the share of its tokens that are the
    model's first choice under teacher forcing."""

    nll: float
    right: float


def target_scores(model, tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """A Score for each (prompt, target)."""
    return [Score(*map(float, np.mean(tokens, axis=0)))
            for tokens in token_scores(model, tokenizer, pairs)]


def case_scores(model, tokenizer, case) -> dict:
    """{group: [{"target_new": NLL, "target_true": NLL, "correct": bool}]} of one case.

    correct: every token of what should be said is the argmax: the new target on rewrite and
    paraphrase prompts, the true one on neighborhood prompts.
    """
    new, true = case.request.target_new, case.request.target_true
    asked = {"rewrite": [(one.text, one.target_new, one.target_true) for one in case.requests],
             "paraphrase": [(prompt, new, true) for prompt in case.paraphrases],
             "neighborhood": [(prompt, new, case.neighbor_answer) for prompt in case.neighbors]}
    pairs = [(case.ask(prompt), target) for group in GROUPS for prompt, *targets in asked[group]
             for target in targets]
    scores = iter(target_scores(model, tokenizer, pairs))
    out = {}
    for group in GROUPS:
        out[group] = []
        for _ in asked[group]:
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
