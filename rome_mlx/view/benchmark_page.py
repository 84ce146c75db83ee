"""The page of a benchmark run: what it says in words, every measure beside the unedited model's,
what is right with the tokens given against what is said, and the cases lost."""

from html import escape

from ..evaluation.answers import says
from ..evaluation.measures import MEASURES, in_parts, measure
from .charts import dumbbells
from .compare import MeasuredRun, interval, main_measures, moved, notes, number
from .page import bar, definitions, numbers, page, paragraph, section, table
from .reading import reading

_LISTED, _ANSWERS = 30, 12
_GROUPS = {"rewrite": "prompts", "paraphrase": "paraphrases", "chat": "questions in a chat"}


def benchmark_page(run: MeasuredRun, settings: dict) -> str:
    """The HTML page of a run, as `read_run` gives it."""
    summary = run.summary
    found = {name: value for name, value in summary.items()
             if isinstance(value, dict) and "mean" in value}
    names = [*(n for n in MEASURES if n in found), *(n for n in found if n not in MEASURES)]
    unedited, change = summary["unedited"], moved(run)

    def row(name: str) -> list[str]:
        return [escape(measure(name).words),
                *(_cell(name, measures[name], look, summary["cases"]) if name in measures else ""
                  for measures, look in ((found, "new"), (unedited, "true"))),
                _change(name, change[name]) if name in change else ""]

    tables = [table([title, "Edited", "Unedited", "Difference"], [row(name) for name in some])
              for title, some in in_parts(names).items()]
    head = [(measure(n).label, number(n, found[n]["mean"])) for n in main_measures(found)[:4]]
    title = f"{summary['method']}, {summary['cases']} cases"
    body = [f"<h1>{escape(title)}</h1>", numbers(head),
            *(paragraph(sentence) for sentence in reading(found)),
            *_free(found, run.results),
            section("Measures", paragraph(
                "Means over cases, and edited less unedited case by case. "
                + " ".join(notes([summary])) + " Bars end at 100.", "soft small"),
                    *tables), *_lost(run.results),
            section("Made with", definitions(settings.items()))]
    return page(title, body)


def _cell(name: str, value: dict, classes: str, cases: int) -> str:
    about, mean = measure(name), value["mean"]
    shown = (bar(mean, 100, classes, about.decimals) if about.share
             else f'<div data-key="{mean:.9g}">{number(name, mean)}</div>')
    count = "" if value["n"] == cases else f", n {value['n']}"
    return f'{shown}<span class="soft small">{interval(name, value)}{count}</span>'


def _change(name: str, value: dict) -> str:
    return (f'<div data-key="{value["mean"]:.9g}">{number(name, value["mean"], "+")}</div>'
            f'<span class="soft small">{interval(name, value, "+")}</span>')


def _free(found: dict, results: list[dict]) -> list[str]:
    """What is right with the earlier tokens given, against what is said in free text."""
    rows = [(words, [(look, value["mean"], value["ci95"] or [value["mean"]] * 2)
                     for name, look in (("forced", "true"), ("said", "new"))
                     if (value := found.get(f"wild_{group}_{name}"))])
            for group, words in _GROUPS.items() if f"wild_{group}_said" in found]
    if not rows:
        return []
    return [section(
        "Given, and said",
        paragraph("Percent of prompts. Grey: every token of the answer is the first choice when "
                  "the ones before it are given, as accuracy is mostly measured. Blue: the model, "
                  "left to itself, says it. Lines are 95 % intervals.", "soft small"),
        dumbbells(rows, "right with the tokens given, and said in free text"),
        table(["Prompt", "The model goes on", "New answer", "In free text"],
              _answers(results)))]


def _answers(results: list[dict]) -> list[list[str]]:
    """The first cases' prompts and what the model says."""
    asked = [now for case in results if (now := case["measures"].get("wild", {}).get("post"))]
    return [[escape(answer["prompt"]), escape(answer["text"].strip()),
             escape(now["answers"][0].strip()),
             "said" if says(answer["text"], now["answers"], now["instead"]) else "not said"]
            for now in asked[:_ANSWERS] for answer in now["rewrite"]]


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
