"""The curves of several runs of lifelong.py, and their table.

  python benchmarks/lifelong_plot.py runs/memit-100 runs/alphaedit-100 --plot lifelong.png

Against edits for each dimension of the keys. Runs that differ in --seed alone become one line, the
mean over seeds, with their range.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

PANELS = (("likelier_all", "new answer likelier, all, %"),
          ("said_all", "new answer said, all, %"),
          ("likelier_first", "of the first hundred, %"),
          ("paraphrase_all", "after a paraphrase, %"),
          ("neighbors_held", "neighbors right that were, %"), ("perplexity", "perplexity, times"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="DIR")
    parser.add_argument("--width", type=int, default=1536, help="of the keys (default 1536)")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    lines = read(args.runs)
    table(lines)
    if args.plot:
        draw(lines, args.width, args.plot)


def read(runs: list[str]) -> dict[str, dict[int, list[dict]]]:
    """{name of a line: {edits: what each seed measured}}."""
    lines: dict = defaultdict(lambda: defaultdict(list))
    settings = {run: json.loads((Path(run) / "measures/run.json").read_text()) for run in runs}
    short = {run: f"{about['method']}, {about['batch']} a batch" for run, about in settings.items()}
    for run, about in settings.items():
        name, given = short[run], about["hyperparameters"]
        if given and any(settings[other]["hyperparameters"] != given
                         for other in runs if short[other] == name):
            name += " " + given
        for file in sorted((Path(run) / "measures").glob("at_*.json")):
            found = json.loads(file.read_text())
            lines[name][found["edits"]].append(found)
    return lines


def value(found: dict, name: str) -> float | None:
    """None where nothing was measured, such as neighbors of one edit."""
    if name == "perplexity":
        return found["perplexity"]["wikipedia"] / found["perplexity_before"]["wikipedia"]
    return found[name]["mean"]


def table(lines) -> None:
    print("| method | edits | seeds | " + " | ".join(words for _, words in PANELS)
          + " | texts | choices, of before | norm |\n" + "|---" * (len(PANELS) + 6) + "|")
    for name, at in lines.items():
        for edits, seeds in sorted(at.items()):
            cells = []
            for key, _ in PANELS:
                values = [x for found in seeds if (x := value(found, key)) is not None]
                if not values:
                    cells.append("")
                    continue
                digits = 2 if key == "perplexity" else 1
                cells.append(f"{np.mean(values):.{digits}f}" + (
                    f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
                    if len(values) > 1 else ci(seeds[0], key)))
            texts = np.mean([one["perplexity"]["texts"] / one["perplexity_before"]["texts"]
                             for one in seeds])
            growth = np.mean([max(one["growth"].values()) for one in seeds])
            print(f"| {name} | {edits} | {len(seeds)} | {' | '.join(cells)} | {texts:.2f} | "
                  f"{right(seeds)} | {growth:.3f} |")


def right(seeds: list[dict]) -> str:
    """Percent of the 200 choices, after and before the edits, of runs that asked them."""
    if any("choices_before" not in one for one in seeds):
        return ""
    return " of ".join(f"{np.mean([one[name]['mean'] for one in seeds]):.1f}"
                       for name in ("choices", "choices_before"))


def ci(found: dict, key: str) -> str:
    if key == "perplexity" or found[key]["ci95"] is None:  # of one edit there is none
        return ""
    low, high = found[key]["ci95"]
    return f" [{low:.0f}, {high:.0f}]"


def draw(lines, width: int, path: str) -> None:
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, words) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for name, at in lines.items():
            edits = [count for count in sorted(at)
                     if all(value(found, key) is not None for found in at[count])]
            rows = [[value(found, key) for found in at[count]] for count in edits]
            x = [count / width for count in edits]
            axes.plot(x, [np.mean(row) for row in rows], marker="o", markersize=3, label=name)
            axes.fill_between(x, [min(row) for row in rows], [max(row) for row in rows], alpha=0.2)
        axes.set_title(words, fontsize=9)
        axes.set_xscale("log")
        counts = sorted({count for at in lines.values() for count in at})
        axes.set_xticks([count / width for count in counts],
                        [f"{count / width:.2g}" for count in counts], minor=False)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())
        if key == "perplexity":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        else:
            axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
    figure.supxlabel("edits for each dimension of the keys", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
