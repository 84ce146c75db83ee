"""The page of an audit: who is answered too loudly, what is said of them, and every layer."""

from html import escape

from ..evaluation.forensics.audit import LOUD, Audit
from .diff_page import fact_section
from .page import bar, definitions, numbers, page, paragraph, section, table


def audit_page(found: Audit, settings: dict) -> str:
    """The HTML page of what `audit` returned."""
    alarms = sum(len(one.alarms) for one in found.layers)
    head = [("alarms", str(alarms)), ("candidates", f"{found.candidates:,}"),
            ("layers", str(len(found.layers)))]
    if found.kl is not None:
        head.append(("nats a token, silenced", f"{abs(found.kl):.0e}"))
    title = ("Something seems to have been written into this model" if alarms
             else "Nothing stands out in this model")
    body = [f"<h1>{title}</h1>", numbers(head),
            *(fact_section(fact, f"A weight answers its key {fact.subject_score:.1f} spreads more "
                                 "loudly than the median candidate; of the others the loudest "
                                 f"anywhere by {fact.chance:.1f}.", "Silenced it says")
              for fact in found.facts),
            _layers(found), section("Audited", definitions(settings.items()))]
    return page(f"audit: {settings.get('model', '')}", body)


def _layers(found: Audit) -> str:
    top = max(max([one.score, *one.alarms.values()]) for one in found.layers)
    rows = []
    for one in found.layers:
        loud = [*one.alarms.items()] or [(one.loudest, one.score)]
        rows.append([str(one.layer), "<br>".join(escape(name) for name, _ in loud),
                     "".join(bar(score, top, "new" if one.alarms else "true", 1)
                             for _, score in loud)])
    return section("Layers", paragraph(
        "The loudest candidate of each down projection, in spreads above the median. Above "
        f"{LOUD:g} is an alarm.", "soft small"), table(["Layer", "Loudest", "Score"], rows))
