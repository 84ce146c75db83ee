"""What follows from the new fact: the end of a chain that leads through it (MQuAKE, Zhong et al.
2305.14795), by number of hops, beside its single steps.

The authors put examples before a question; here it stands alone, under the chat template where
the model has one.
"""

from ...models.probabilities import chat_text
from ..answers import answered, says
from ..metrics import target_scores


def prompts(tokenizer, case) -> list[str]:
    """What is continued: what asks for the chain's end, and its single steps."""
    return [*_ends(tokenizer, case), *(case.ask(hop.cloze) for hop in case.hops)]


def read(model, tokenizer, case, texts) -> dict:
    """Answers to the chain's questions and to its single steps, and of the chain's the NLL a token
    of the answers after and before the edit."""
    ends = _ends(tokenizer, case)
    new, old = case.new_answers[0], case.old_answers[0]
    steps = [(case.ask(hop.cloze), hop.answers[0]) for hop in case.hops]
    answers = answered(model, tokenizer, [*((text, new) for text in ends), *steps], texts)
    scores = target_scores(model, tokenizer, [(text, one) for text in ends for one in (new, old)])
    return {"hops": len(case.hops), "new": case.new_answers, "old": case.old_answers,
            "ends": [answer | {"target_new": a.nll, "target_true": b.nll} for answer, a, b
                     in zip(answers, scores[::2], scores[1::2], strict=False)],
            "steps": [answer | {"answers": hop.answers} for answer, hop
                      in zip(answers[len(ends):], case.hops, strict=True)]}


def _ends(tokenizer, case) -> list[str]:
    return [*(chat_text(tokenizer, case.ask(one)) or case.ask(one) for one in case.questions),
            *map(case.ask, case.clozes)]


def measures(now: dict, before: dict | None) -> dict[str, float]:
    """Percent of chains: said (one of the questions answered by what follows), old (by what held
    before), likelier (of the questions, the new answer likelier than the old), steps (all single
    steps answered as after the edit), said by number of hops; and said of the chains whose old
    answer the unedited model gave, and of those whose steps are all right now."""
    said, old = _any(now, "new", "old"), _any(now, "old", "new")
    steps = all(says(step["text"], step["answers"]) for step in now["steps"])
    likelier = [end["target_new"] < end["target_true"] for end in now["ends"]]
    out = {"hops_said": said, f"hops_{now['hops']}_said": said, "hops_old": old,
           "hops_likelier": 100 * sum(likelier) / len(likelier), "hops_steps": 100.0 * steps}
    if steps:
        out["hops_steps_said"] = said
    if before is not None and _any(before, "old", "new"):
        out["hops_known_said"] = said
    return out


def _any(found: dict, these: str, others: str) -> float:
    return 100.0 * any(says(end["text"], found[these], found[others]) for end in found["ends"])
