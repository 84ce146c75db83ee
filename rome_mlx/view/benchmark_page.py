"""The page of a benchmark run: every measure beside the unedited model's, and the cases lost."""

from html import escape

from .compare import digits
from .page import bar, definitions, numbers, page, paragraph, section, table

#: measure -> words; measures that are not here come after these, under their own names
_WORDS = {
    "score": "S: harmonic mean of ES, PS and NS", "rewrite_success": "ES: rewrites that hold",
    "paraphrase_success": "PS: paraphrases that follow",
    "neighborhood_success": "NS: neighbors that stay",
    "neighborhood_known_success": "NS over neighbors known before",
    "rewrite_magnitude": "EM: rewrite magnitude", "paraphrase_magnitude": "PM: paraphrases",
    "neighborhood_magnitude": "NM: neighbors", "rewrite_acc": "rewrite accuracy",
    "paraphrase_acc": "paraphrase accuracy", "neighborhood_acc": "neighbor accuracy",
    "portability": "portability accuracy",
    "ngram_entropy": "GE: entropy of n-grams in free text, 100 × bits",
    "reference_score": "RS: likeness to texts on the new answer",
    "kl_drift": "KL on a neutral text, nats a token",
}
_UNBOUNDED = ("kl_drift", "ngram_entropy")  # no shares of 100, and so without bars
_LISTED = 30


def benchmark_page(summary: dict, settings: dict, cases: list[dict]) -> str:
    """The HTML page of a summary as `evaluate` returns it."""
    found = {name: value for name, value in summary.items()
             if isinstance(value, dict) and "mean" in value}
    names = [*(n for n in _WORDS if n in found), *(n for n in found if n not in _WORDS)]
    unedited = summary.get("unedited", {})
    rows = [[_WORDS.get(name, name.replace("_", " ")),
             *(_cell(name, measures[name], look) if name in measures else ""
               for measures, look in ((found, "new"), (unedited, "true")))] for name in names]
    head = [(_WORDS[n].split(":")[0], f"{found[n]['mean']:.1f}")
            for n in ("score", "rewrite_success", "paraphrase_success", "neighborhood_success")
            if n in found]
    title = f"{summary['method']}, {summary['cases']} cases"
    body = [f"<h1>{escape(title)}</h1>", numbers(head),
            section("Measures", paragraph("Means over cases with 95 % bootstrap intervals. Bars "
                                          "end at 100.", "soft small"),
                    table(["", "Edited", "Unedited"], rows)), *_lost(cases),
            section("Made with", definitions(settings.items()))]
    return page(title, body)


def _cell(name: str, measure: dict, classes: str) -> str:
    (low, high), decimals = measure["ci95"], digits(name)
    mean = (f"<div>{measure['mean']:.{decimals}f}</div>" if name in _UNBOUNDED else
            bar(measure["mean"], 100, classes, decimals))
    return (mean + f'<span class="soft small">{low:.{decimals}f} to {high:.{decimals}f}</span>')


def _lost(cases: list[dict]) -> list[str]:
    """The rewrites that were not written, the clearest failures first."""
    lost = []
    for case in cases:
        for scores in case["post"].get("rewrite", ()):
            if (margin := scores.get("target_true", 1.0) - scores.get("target_new", 0.0)) <= 0:
                lost.append((margin, case))
    if not cases:
        return []
    lost.sort(key=lambda pair: pair[0])
    rows = [[str(case["case_id"]), escape(case["request"]["prompt"].replace(
        "{}", case["request"]["subject"])), escape(case["request"]["target_new"].strip()),
        escape((case["request"].get("target_true") or "").strip()), f"{margin:.2f}"]
        for margin, case in lost[:_LISTED]]
    words = (f"{len(lost)} of {len(cases)} rewrites were not written; NLL of the old answer minus "
             "that of the new one." if lost else "Every rewrite was written.")
    return [section("What was not written", paragraph(words),
                    *([table(["Case", "Prompt", "New", "Old", "Margin"], rows)] if rows else []))]
