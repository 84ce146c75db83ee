"""Several runs in one table: for the terminal, Markdown or LaTeX, or as a picture."""

from pathlib import Path

import numpy as np

from ..errors import RomeError
from ..evaluation import metrics, zsre
from ..evaluation.summary import summary_of
from ..storage.files import read_json

#: measure -> how it is called beside the paper's tables
MEASURES = {
    "score": "S", "rewrite_success": "ES", "paraphrase_success": "PS",
    "neighborhood_success": "NS", "neighborhood_known_success": "NS known",
    "rewrite_magnitude": "EM", "paraphrase_magnitude": "PM", "neighborhood_magnitude": "NM",
    "rewrite_acc": "acc", "paraphrase_acc": "acc para", "neighborhood_acc": "acc neigh",
    "portability": "portable", "ngram_entropy": "GE", "reference_score": "RS", "kl_drift": "KL",
}
_TERMINAL = {"counterfact": ("score", "rewrite_success", "paraphrase_success",
                             "neighborhood_success", "neighborhood_known_success", "kl_drift"),
             "zsre": ("score", "rewrite_acc", "paraphrase_acc", "neighborhood_acc",
                      "portability", "kl_drift")}
_DIGITS = {"kl_drift": 4}  # of the others 1
_NAME = 18  # columns of the terminal for a run's name
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")


def read_run(path: str | Path) -> dict:
    """A run's summary, made anew from its cases' files, whether it is finished or not.

    {"name": the directory's, "benchmark", and the summary}. Raises RomeError for a directory
    that is not of a run.
    """
    path = Path(path)
    files = sorted(path.glob("case_*.json"), key=lambda p: (len(p.name), p.name))
    if not (path / "run.json").is_file() or not files:
        raise RomeError(f"{str(path)!r} is not the directory of a run with a finished case; give "
                        "an --output of rome-mlx eval")
    try:
        results = [read_json(file) for file in files]
        settings = read_json(path / "run.json")
        successes = isinstance(results[0]["pre"]["rewrite"][0], dict)
        summary = summary_of(results, {"method": settings["method"], "model": settings["model"]},
                             metrics if successes else zsre)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RomeError(f"the run in {str(path)!r} is damaged ({type(error).__name__}: {error}); "
                        "run it again") from error
    return {"name": path.resolve().name, "benchmark": "counterfact" if successes else "zsre",
            "ids": [result["case_id"] for result in results], **summary}


def digits(name: str) -> int:
    """How many decimals of a measure are worth showing."""
    return _DIGITS.get(name, 1)


def rows_of(runs: list[dict]) -> list[dict]:
    """The unedited model, where it is the same in all runs, and the runs.

    Raises RomeError for runs of different benchmarks.
    """
    if len({run["benchmark"] for run in runs}) > 1:
        raise RomeError("the runs are of CounterFact and of zsRE; compare runs of one benchmark")
    first = runs[0]
    rows = [run for run in runs if run["method"] != "none"]
    if all(run["ids"] == first["ids"] and run["model"] == first["model"] for run in runs):
        rows = [{"name": "unedited", "cases": first["cases"], **first["unedited"]}, *rows]
    else:
        rows = runs
    return rows


def terminal(runs: list[dict]) -> str:
    """At most 80 columns: the main measures, ± half of the 95 % interval's width."""
    rows = rows_of(runs)
    names = [n for n in _TERMINAL[runs[0]["benchmark"]] if any(n in row for row in rows)]
    lines = ["".ljust(_NAME) + f"{'n':>5}" + "".join(f"{MEASURES[n]:>9}" for n in names)]
    for row in rows:
        lines.append(row["name"][-_NAME:].ljust(_NAME) + f"{row['cases']:>5}" + "".join(
            f"{_mean(row, n):>9}" for n in names))
        lines.append("".ljust(_NAME + 5) + "".join(f"{_half(row, n):>9}" for n in names))
    return "\n".join(lines)


def markdown(runs: list[dict]) -> str:
    """Every measure that a run has, ± half of the 95 % interval's width."""
    rows, names = rows_of(runs), _present(rows_of(runs))
    lines = [f"| run | n | {' | '.join(MEASURES[n] for n in names)} |",
             f"|---|---|{'---|' * len(names)}"]
    lines += [f"| {row['name']} | {row['cases']} | "
              + " | ".join(f"{_mean(row, n)} {_half(row, n)}".strip() for n in names) + " |"
              for row in rows]
    return "\n".join(lines)


def latex(runs: list[dict]) -> str:
    """The same as a tabular."""
    rows, names = rows_of(runs), _present(rows_of(runs))
    lines = [rf"\begin{{tabular}}{{lr{'r' * len(names)}}}", r"\hline",
             " & ".join(["run", "n", *(MEASURES[n] for n in names)]) + r" \\", r"\hline"]
    for row in rows:
        cells = [f"{_mean(row, n)} {_half(row, n)}".strip().replace("±", r"$\pm$") for n in names]
        name = "".join("\\" + c if c in "_&%#$" else c for c in row["name"])
        lines.append(" & ".join([name, str(row["cases"]), *cells]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def plot(runs: list[dict], path: str | Path) -> Path:
    """S and its parts as bars with their 95 % intervals, a group a run."""
    from matplotlib.figure import Figure

    from .plot import save

    rows = rows_of(runs)
    names = [n for n in _TERMINAL[runs[0]["benchmark"]][:4] if any(n in row for row in rows)]
    figure = Figure(figsize=(2 + 1.1 * len(rows), 3.6), layout="constrained")
    axes, width = figure.subplots(), 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        have = [(at, row[name]) for at, row in enumerate(rows) if name in row]
        means = np.array([m["mean"] for _, m in have])
        ends = np.array([m["ci95"] for _, m in have]).T
        axes.bar([at + (i - (len(names) - 1) / 2) * width for at, _ in have], means, width,
                 yerr=np.abs(ends - means), color=_COLORS[i], error_kw={"linewidth": 0.8},
                 label=MEASURES[name])
    axes.set_xticks(range(len(rows)), [f"{row['name']}\nn = {row['cases']}" for row in rows],
                    fontsize=8, parse_math=False)
    axes.set_ylim(0, 105)
    axes.set_ylabel("percent, with 95 % intervals")
    figure.legend(loc="outside lower center", ncols=len(names), frameon=False)
    return save(figure, path)


def _present(rows: list[dict]) -> list[str]:
    return [n for n in MEASURES if any(n in row for row in rows)]


def _mean(row: dict, name: str) -> str:
    return f"{row[name]['mean']:.{digits(name)}f}" if name in row else ""


def _half(row: dict, name: str) -> str:
    if name not in row:
        return ""
    low, high = row[name]["ci95"]
    return f"±{(high - low) / 2:.{digits(name)}f}"
