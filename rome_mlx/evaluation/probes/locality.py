"""What an edit should leave: neighbors beside its own statement, the subject's other relations,
the denied fact; and what it should bring with it: the fact turned round.

All against what the unedited model itself says.
"""

from ...models.probabilities import said
from ...models.tokens import encode, first_target_id
from ...storage.wordings import unrelated_texts, wordings
from ..cases import stated
from ..metrics import target_scores
from ..questions import QuestionCase

_OTHERS = 8  # other relations asked


def read_distractor(model, tokenizer, case) -> dict:
    """Neighbors with the edit's own statement put in front (CounterFact+, Hoelscher-Obermaier et
    al. 2305.17553), scored as neighbors are."""
    if isinstance(case, QuestionCase):
        scores = target_scores(model, tokenizer, [
            (case.ask(f"{stated(case.request)} {prompt}"), answer)
            for prompt, answer in case.neighbors])
        return {"neighborhood": [{"right": score.right == 1} for score in scores]}
    texts = [case.ask(f"{stated(case.request)} {prompt}") for prompt in case.neighbors]
    return {"neighborhood": _compared(model, tokenizer, texts, case.request.target_new,
                                      case.neighbor_answer)}


def measures_distractor(now: dict, before: dict | None) -> dict[str, float]:
    return _right("distractor", now["neighborhood"], before and before["neighborhood"])


def read_relations(model, tokenizer, case) -> dict:
    """The first token after other prompts on the subject, and the new answer's first token."""
    texts = [case.ask(text.replace("{}", case.request.subject))
             for text in unrelated_texts(case.relation)[:_OTHERS]]
    found = said(model, tokenizer, [(encode(tokenizer, text).ids, 1) for text in texts])
    return {"prompts": texts, "first": [answer.first for answer in found],
            "words": [tokenizer.decode([answer.first]) for answer in found],
            "new": [first_target_id(tokenizer, text, case.request.target_new) for text in texts]}


def measures_relations(now: dict, before: dict | None) -> dict[str, float]:
    """Percent of the subject's other relations: answered as before (kept), or now by the edit's
    answer, which was not the first choice before (taken)."""
    if before is None:
        return {}
    pairs = list(zip(now["first"], before["first"], now["new"], strict=True))
    return {"relations_kept": 100 * sum(n == b for n, b, _ in pairs) / len(pairs),
            "relations_taken": 100 * sum(n == new != b for n, b, new in pairs) / len(pairs)}


def read_negation(model, tokenizer, case) -> dict:
    """Of the denied fact: negative log-likelihoods of both answers."""
    text = case.ask(wordings()[case.relation].denied.replace("{}", case.request.subject))
    return {"denied": _compared(model, tokenizer, [text], case.request.target_new,
                                case.request.target_true)}


def measures_negation(now: dict, before: dict | None) -> dict[str, float]:
    """Percent where the denied fact is less likely to name the new answer than the old one."""
    return _right("negation", now["denied"], before and before["denied"])


def read_reversal(model, tokenizer, case) -> dict:
    """Negative log-likelihood a token of the subject after the new and the true object."""
    reverse = wordings()[case.relation].reverse
    pairs = [(case.ask(reverse.replace("{}", answer)), case.request.subject)
             for answer in (case.request.target_new, case.request.target_true)]
    new, true = target_scores(model, tokenizer, pairs)
    return {"target_new": new.nll, "target_true": true.nll}


def measures_reversal(now: dict, before: dict | None) -> dict[str, float]:
    """Percent where the subject is likelier after the new object than after the true one; and by
    how much a token of it gained there, in nats."""
    out = {"reversal_success": 100.0 * (now["target_new"] < now["target_true"])}
    if before is not None:
        out["reversal_gain"] = before["target_new"] - now["target_new"]
    return out


def _compared(model, tokenizer, texts: list[str], new: str, true: str) -> list[dict]:
    """Of each text the NLL a token of both answers; right: the true one is likelier."""
    scores = target_scores(model, tokenizer, [(text, answer) for text in texts
                                              for answer in (new, true)])
    return [{"target_new": a.nll, "target_true": b.nll, "right": b.nll < a.nll}
            for a, b in zip(scores[::2], scores[1::2], strict=True)]


def _right(name: str, now: list[dict], before: list[dict] | None) -> dict[str, float]:
    """Percent right, and of those that were right and wrong before."""
    right = [one["right"] for one in now]
    out = {f"{name}_success": 100 * sum(right) / len(right)}
    if before is not None:
        for measure, was in (("kept", True), ("gained", False)):
            some = [n for n, b in zip(right, before, strict=True) if b["right"] is was]
            if some:
                out[f"{name}_{measure}"] = 100 * sum(some) / len(some)
    return out
