"""The page of a benchmark run: every measure beside the unedited model's, and the cases lost."""

from html import escape

from ..evaluation.measures import MEASURES, measure
from .compare import interval, main_measures, notes, number
from .page import bar, definitions, numbers, page, paragraph, section, table

_LISTED = 30


def benchmark_page(summary: dict, settings: dict, cases: list[dict]) -> str:
    """The HTML page of a summary as `evaluate` returns it."""
    found = {name: value for name, value in summary.items()
             if isinstance(value, dict) and "mean" in value}
    names = [*(n for n in MEASURES if n in found), *(n for n in found if n not in MEASURES)]
    unedited = summary.get("unedited", {})
    rows = [[measure(name).words,
             *(_cell(name, measures[name], look, summary["cases"]) if name in measures else ""
               for measures, look in ((found, "new"), (unedited, "true")))] for name in names]
    head = [(MEASURES[n].label, number(n, found[n]["mean"])) for n in main_measures(found)[:4]]
    title = f"{summary['method']}, {summary['cases']} cases"
    body = [f"<h1>{escape(title)}</h1>", numbers(head),
            section("Measures", paragraph(
                "Means over cases. " + " ".join(notes([summary])) + " Bars end at 100.",
                "soft small"),
                    table(["", "Edited", "Unedited"], rows)), *_lost(cases),
            section("Made with", definitions(settings.items()))]
    return page(title, body)


def _cell(name: str, value: dict, classes: str, cases: int) -> str:
    about, mean = measure(name), value["mean"]
    shown = (bar(mean, 100, classes, about.decimals) if about.share
             else f"<div>{number(name, mean)}</div>")
    count = "" if value["n"] == cases else f", n {value['n']}"
    return f'{shown}<span class="soft small">{interval(name, value)}{count}</span>'


def _lost(cases: list[dict]) -> list[str]:
    """The rewrites that were not written, the clearest failures first."""
    scores = [(score, case) for case in cases for score in case["post"].get("rewrite", ())]
    if not scores:
        return []
    if isinstance(scores[0][0], dict):
        what, head = "NLL of the old answer minus that of the new one", "Margin"
        found = [(score["target_true"] - score["target_new"], case) for score, case in scores]
        lost = [(margin, case) for margin, case in found if margin <= 0]
    else:
        what, head = "share of the new answer's tokens that are the first choice", "Right"
        lost = [(right, case) for right, case in scores if right < 1]
    lost.sort(key=lambda pair: pair[0])
    rows = [[str(case["case_id"]), escape(case["request"]["prompt"].replace(
        "{}", case["request"]["subject"])), escape(case["request"]["target_new"].strip()),
        escape((case["request"].get("target_true") or "").strip()), f"{value:.2f}"]
        for value, case in lost[:_LISTED]]
    words = (f"{len(lost)} of {len(cases)} rewrites were not written; {what}."
             if lost else "Every rewrite was written.")
    return [section("What was not written", paragraph(words),
                    *([table(["Case", "Prompt", "New", "Old", head], rows)] if rows else []))]
