"""The page of what was done to a model: its weights, what was written, and the way back."""

from html import escape

from ..evaluation.forensics.diff import Found
from .page import bar, definitions, numbers, page, paragraph, section, table

_LISTED = 30


def diff_page(found: Found, settings: dict) -> str:
    """The HTML page of what `diff` returned."""
    total = len(found.weights) + found.same
    head = [("verdict", found.verdict), (f"of {total} arrays differ", str(len(found.weights)))]
    if found.facts:
        head.append(("facts named", str(len(found.facts))))
    if found.kl is not None:
        head.append(("nats a token, taken back", f"{abs(found.kl):.0e}"))
    body = [f"<h1>{escape(found.sentence)}</h1>", numbers(head),
            *(fact_section(
                fact, f"Its key fits the change by {fact.subject_score:.2f}; the best of those "
                      f"that were not named by {fact.chance:.2f}.") for fact in found.facts),
            *_grown(found), *_endings(found), *_weights(found),
            section("Compared", definitions(settings.items()))]
    return page(f"{found.verdict}: {settings.get('model', '')}", body)


def fact_section(fact, words: str, was: str = "The base says") -> str:
    """What the model says of a subject, prompt by prompt. words: how it was found."""
    rows = [[escape(one.prompt), escape(one.base.strip()), escape(one.model.strip()),
             bar(one.before, 1, "true before"), bar(one.probability, 1, "new")]
            for one in fact.prompts]
    return section(f"{fact.subject}: {fact.object}", paragraph(words), table(
        ["Prompt", was, "The model says", "Its P before", "and now"], rows))


def _grown(found: Found) -> list[str]:
    words = ("Made up without a list, token by token, so that the key fits. The last words are "
             "surer than the first.")
    return [section("Names that fit", paragraph(words, "soft small"), table(
        ["Name", "Score"], [[escape(name), bar(score, 1, "new", 2)] for name, score in names]))
        for names in found.grown]


def _endings(found: Found) -> list[str]:
    if not found.endings:
        return []
    rows = [[f"<code>{escape(repr(text))}</code>", bar(score, 1, "new", 2)]
            for text, score in found.endings]
    words = ("No list of subjects was given. Of the whole vocabulary these tokens fit the change "
             "best; a subject's key is mostly that of its last token.")
    return [section("How the subject may end", paragraph(words, "soft small"),
                    table(["Token", "Score"], rows))]


def _weights(found: Found) -> list[str]:
    if not found.weights:
        return []
    largest = sorted(found.weights, key=lambda one: -one.relative_norm)[:_LISTED]
    top = 100 * largest[0].relative_norm
    rows = [[escape(one.path), bar(100 * one.relative_norm, top, "new"), escape(
        f"rank {one.rank}" if one.rank else one.kind)] for one in largest]
    rest = len(found.weights) - len(largest)
    more = [paragraph(f"and {rest} more")] if rest else []
    return [section("What differs", table(["Array", "‖ΔW‖ / ‖W‖ in %", "How"], rows), *more)]
