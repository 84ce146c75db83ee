"""Several runs beside each other, and their paired differences: for the terminal, Markdown or
LaTeX, or as a picture."""

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

import numpy as np

from ..errors import RomeError
from ..evaluation import metrics, questions
from ..evaluation.further import with_further
from ..evaluation.measures import MEASURES, measure
from ..evaluation.summary import differences, groups_of, measures_of, summary_of
from ..intervals import FEW
from ..storage.files import read_json

_BENCHMARKS = {"counterfact": metrics, "questions": questions}
_FURTHER = ("wild_rewrite_said", "wild_chat_said", "distractor_success", "relations_kept",
            "hops_said")
_MAIN = {"counterfact": ("score", "rewrite_success", "paraphrase_success", "neighborhood_success",
                         "neighborhood_kept", "kl_drift", *_FURTHER),
         "questions": ("score", "rewrite_acc", "paraphrase_acc", "neighborhood_acc", "portability",
                       "kl_drift", *_FURTHER)}
_FREE = ("wild_rewrite_forced", "wild_rewrite_said", "wild_paraphrase_forced",
         "wild_paraphrase_said", "wild_chat_said")
_NAME = 13  # columns of the terminal for a run's name
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class MeasuredRun:
    """A run's cases and their summary; name: the directory's; benchmark: whose measures
    they are by, counterfact or questions."""

    name: str
    benchmark: str
    summary: dict
    results: list[dict] = field(repr=False)

    @property
    def ids(self) -> list[int]:
        return [result["case_id"] for result in self.results]


@dataclass(frozen=True)
class Row:
    """One line of a table: a run, or the unedited model.

    differences: what it has more than the first run given, as `differences` returns it; None for
    that run itself, and where they have no case in common.
    """

    name: str
    cases: int
    measures: dict
    differences: dict | None


def read_run(path: str | Path) -> MeasuredRun:
    """A run from its cases' files, whether it is finished or not; the summary is made anew.

    Raises RomeError for a directory that is not of a run.
    """
    path = Path(path)
    files = sorted(path.glob("case_*.json"), key=lambda p: (len(p.name), p.name))
    if not (path / "run.json").is_file() or not files:
        raise RomeError(f"{str(path)!r} is not the directory of a run with a finished case; give "
                        "an --output of rome-mlx eval")
    try:
        results = with_further(path, [read_json(file) for file in files])
        settings = read_json(path / "run.json")
        successes = isinstance(results[0]["pre"]["rewrite"][0], dict)
        benchmark = "counterfact" if successes else "questions"
        summary = summary_of(results, {"method": settings["method"], "model": settings["model"]},
                             _BENCHMARKS[benchmark])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RomeError(f"the run in {str(path)!r} is damaged ({type(error).__name__}: {error}); "
                        "run it again") from error
    return MeasuredRun(path.resolve().name, benchmark, summary, results)


def rows_of(runs: list[MeasuredRun]) -> list[Row]:
    """The unedited model, where it is the same in all runs, and the runs.

    Raises RomeError for runs of different benchmarks.
    """
    if len({run.benchmark for run in runs}) > 1:
        raise RomeError("the runs are of facts and of questions; compare runs of one benchmark")
    first = runs[0]
    rows = [Row(run.name, run.summary["cases"], run.summary,
                None if run is first else paired(first, run)) for run in runs]
    if any(run.ids != first.ids or run.summary["model"] != first.summary["model"] for run in runs):
        return rows
    unedited = Row("unedited", first.summary["cases"], first.summary["unedited"],
                   paired(first, first, "pre") if first.summary["method"] != "none" else None)
    return [unedited, *(row for run, row in zip(runs, rows, strict=True)
                        if run.summary["method"] != "none")]


def paired(first: MeasuredRun, other: MeasuredRun, state: str = "post") -> dict | None:
    """other − first on the cases of one id and request that both have; None where there are none.

    state: "pre" for the model without the other run's edits.
    """
    ours = {result["case_id"]: result for result in first.results}
    pairs = [(mine, result) for result in other.results
             if (mine := ours.get(result["case_id"])) and mine["request"] == result["request"]]
    if not pairs:
        return None
    benchmark = _BENCHMARKS[first.benchmark]
    base, others = (list(side) for side in zip(*pairs, strict=True))
    return differences(
        measures_of(base, "post", benchmark), measures_of(others, state, benchmark),
        benchmark.SCORE, groups_of(base),
        groups_of(others) if state == "post" else range(len(others)))


def moved(run: MeasuredRun) -> dict:
    """Edited − unedited of every measure, case by case, as `differences` returns it."""
    benchmark = _BENCHMARKS[run.benchmark]
    return differences(*(measures_of(run.results, state, benchmark) for state in ("pre", "post")),
                       benchmark.SCORE, range(len(run.results)), groups_of(run.results))


def to_json(runs: list[MeasuredRun]) -> list[dict]:
    """The runs' summaries; "differences" of all but the first: {"to": its name, measure: …}."""
    rows_of(runs)  # refuses runs of different benchmarks
    out = []
    for run in runs:
        found = None if run is runs[0] else paired(runs[0], run)
        out.append({"name": run.name, "benchmark": run.benchmark, "ids": run.ids, **run.summary,
                    "differences": found and {"to": runs[0].name, **found}})
    return out


def main_measures(names: Container[str], benchmark: str | None = None) -> list[str]:
    """Those of the names that a summary begins with: S, its parts, and what the edit moved."""
    benchmark = benchmark or ("counterfact" if "rewrite_success" in names else "questions")
    return [name for name in _MAIN[benchmark] if name in names]


def number(name: str, value: float, sign: str = "") -> str:
    """With the measure's decimals, and never as −0; sign "+" for differences."""
    decimals = measure(name).decimals
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def interval(name: str, value: dict, sign: str = "") -> str:
    """[low, high], or [none] where all cases share one edited model."""
    if value["ci95"] is None:
        return "[none]"
    return f"[{', '.join(number(name, end, sign) for end in value['ci95'])}]"


def notes(summaries: list[dict]) -> list[str]:
    """What has to be known of the intervals of runs, a sentence each."""
    measures = [value for summary in summaries for value in summary.values()
                if isinstance(value, dict) and "ci95" in value]
    said = ["[low, high] are 95 % intervals."]
    if any(summary["groups"] < summary["cases"] for summary in summaries):
        said.append("Cases that share an edited model are resampled together.")
    if any(value["ci95"] is None for value in measures):
        said.append("[none]: one case, or one edited model, has no interval.")
    if min(*(summary["groups"] for summary in summaries), *(m["n"] for m in measures)) < FEW:
        said.append(f"Over fewer than {FEW} cases or groups they are too narrow.")
    return said


def terminal(runs: list[MeasuredRun]) -> str:
    """At most 80 columns: the main measures, each with its n, interval and paired difference."""
    rows, first = rows_of(runs), runs[0].name
    title = f"minus {_short(first)}" if any(row.differences for row in rows) else ""
    lines = [f"{'':{_NAME + 2}}{'n':>4}  {'mean [95 % interval]':<26}{title}".rstrip()]
    for key in main_measures({n for row in rows for n in row.measures}, runs[0].benchmark):
        lines.append(MEASURES[key].label)
        lines += [_line(row, key) for row in rows if key in row.measures]
    return "\n".join([*lines, *(line for note in notes([run.summary for run in runs])
                                for line in wrap(note, 80))])


def _line(row: Row, key: str) -> str:
    value = row.measures[key]
    line = (f"  {_short(row.name):<{_NAME}}{value['n']:>4} {number(key, value['mean']):>7} "
            f"{interval(key, value):<18}")
    if row.differences and key in row.differences:
        change = row.differences[key]
        line += f"{number(key, change['mean'], '+'):>7} {interval(key, change, '+')}"
        if change["n"] != value["n"]:
            line += f" n {change['n']}"
    return line.rstrip()


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "…" + name[1 - _NAME:]


def tables_of(runs: list[MeasuredRun]) -> list[list[list[str]]]:
    """Tables as rows of cells, a column per run: every measure that a run has, and, where there
    are more runs, the differences to the first on the cases of both. The first row is the head."""
    rows = rows_of(runs)
    out = [_cells("", rows, [row.measures for row in rows], [row.cases for row in rows])]
    others = [row for row in rows if row.differences]
    if others:
        changes = [row.differences for row in others]
        counts = [max(change["n"] for change in row.values()) for row in changes]
        out.append(_cells(f"minus {runs[0].name}", others, changes, counts, "+"))
    return out


def _cells(title: str, rows: list[Row], columns: list[dict], counts: list[int],
           sign: str = "") -> list[list[str]]:
    """A measure whose n is not that of its column says so."""
    def cell(name, column, count):
        if name not in column:
            return ""
        value = column[name]
        text = f"{number(name, value['mean'], sign)} {interval(name, value, sign)}"
        return text if value["n"] == count else f"{text} (n {value['n']})"

    return [[title, *(row.name for row in rows)], ["n", *map(str, counts)],
            *([MEASURES[name].label, *(cell(name, *pair) for pair in zip(columns, counts,
                                                                         strict=True))]
              for name in MEASURES if any(name in column for column in columns))]


def markdown(runs: list[MeasuredRun]) -> str:
    """Every measure with its interval, and the paired differences."""
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))
             for head, *cells in tables_of(runs)]
    return "\n\n".join([*parts, " ".join(notes([run.summary for run in runs]))])


def latex(runs: list[MeasuredRun]) -> str:
    """The same as tabulars."""
    parts = []
    for head, *cells in tables_of(runs):
        names = ["".join("\\" + c if c in "_&%#$" else c for c in name) for name in head]
        lines = [" & ".join(line) + r" \\" for line in (names, *cells)]
        parts.append("\n".join([rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\hline",
                                lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]))
    return "\n\n".join(parts)


def plot(runs: list[MeasuredRun], path: str | Path) -> Path:
    """S and its parts as bars with their 95 % intervals, a group per run; below, where the runs
    have it, what is right under teacher forcing beside what is said in free text."""
    from matplotlib.figure import Figure

    from .plot import save

    rows = rows_of(runs)
    there = {name for row in rows for name in row.measures}
    panels = [main_measures(there, runs[0].benchmark)[:4]]
    if free := [name for name in _FREE if name in there]:
        panels.append(free)
    figure = Figure(figsize=(max(5, 2 + 1.1 * len(rows)), 3.6 * len(panels)),
                    layout="constrained")
    for axes, names in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _bars(axes, rows, names)
    return save(figure, path)


def _bars(axes, rows: list[Row], names: list[str]) -> None:
    """A bar for each measure, in a group for each row."""
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        have = [(at, row.measures[name]) for at, row in enumerate(rows) if name in row.measures]
        means = np.array([m["mean"] for _, m in have])
        ends = np.array([m["ci95"] or (np.nan, np.nan) for _, m in have]).T
        axes.bar([at + (i - (len(names) - 1) / 2) * width for at, _ in have], means, width,
                 yerr=np.abs(ends - means), color=_COLORS[i], error_kw={"linewidth": 0.8},
                 label=MEASURES[name].label)
    axes.set_xticks(range(len(rows)), [f"{row.name}\nn = {row.cases}" for row in rows],
                    fontsize=8, parse_math=False)
    axes.set_ylim(0, 105)
    axes.set_ylabel("percent, with 95 % intervals")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(names),
                frameon=False, fontsize=8, handlelength=1.2, columnspacing=1.2)
