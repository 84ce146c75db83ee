"""Does the model say the answer and stop, when nothing of it is given?

The Mirage of Model Editing (2502.11177): prompts without context, and questions under the chat
template, answered greedily to the model's own end; beside the same prompts under teacher forcing,
where the answer's earlier tokens are given and its length is known.
"""

from ...models.probabilities import chat_text
from ..answers import answered, exactly, says


def prompts(tokenizer, case) -> list[str]:
    """What is continued: all groups' prompts, one after another."""
    return [prompt for some in _groups(tokenizer, case).values() for prompt in some]


def read(model, tokenizer, case, texts) -> dict:
    """{group: answers}, groups rewrite, paraphrase and, for a model with a chat template and a
    case with a question, chat; with "answers" and what they replace."""
    groups = _groups(tokenizer, case)
    flat = [(prompt, case.request.target_new) for some in groups.values() for prompt in some]
    answers = iter(answered(model, tokenizer, flat, texts))
    return {"answers": [case.request.target_new],
            "instead": [case.request.target_true] if case.request.target_true else [],
            **{group: [next(answers) for _ in some] for group, some in groups.items()}}


def _groups(tokenizer, case) -> dict[str, list[str]]:
    groups = {"rewrite": [case.ask(case.request.text)],
              "paraphrase": [case.ask(prompt) for prompt in case.paraphrases]}
    if case.question and (chat := chat_text(tokenizer, case.ask(case.question))):
        groups["chat"] = [chat]
    return groups


def measures(now: dict, before: dict | None) -> dict[str, float]:
    """Percent of a group's prompts: said, exact (the answer alone), ended (within the tokens),
    forced (every token, under teacher forcing), and gap, forced less said."""
    out = {}
    for group in ("rewrite", "paraphrase", "chat"):
        answers = now.get(group)
        if not answers:
            continue
        shares = {
            "said": [says(a["text"], now["answers"], now["instead"]) for a in answers],
            "exact": [a["ended"] and exactly(a["text"], now["answers"]) for a in answers],
            "ended": [a["ended"] for a in answers], "forced": [a["forced"] for a in answers]}
        means = {name: 100 * sum(values) / len(values) for name, values in shares.items()}
        means["gap"] = means["forced"] - means["said"]
        out |= {f"wild_{group}_{name}": value for name, value in means.items()}
    return out
