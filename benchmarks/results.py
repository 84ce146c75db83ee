"""The results page's table from run directories.

  python benchmarks/results.py runs/rome runs/ft runs/none --page docs/results.md
  python benchmarks/results.py runs/qa-rome runs/qa-context --page docs/results.md --name qaedit
  python benchmarks/results.py runs/qa-rome runs/qa-context --lengths

Measures with [low, high], the ends of their 95 % intervals, and paired differences to the first
run; or, with --lengths, free text after the prompt by the number of words of the answer. Takes the
place of what stands between the page's two markers of that name; without --page it is printed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rome_mlx.errors import RomeError
from rome_mlx.evaluation.answers import says
from rome_mlx.evaluation.measures import MEASURES, in_parts
from rome_mlx.intervals import wilson
from rome_mlx.storage.files import read_json, write_whole
from rome_mlx.view.compare import notes, read_run, tables_of

WORDS = 6  # and more


def table(paths: list[str]) -> str:
    """The runs' measures, and what each was run with."""
    runs = [read_run(path) for path in paths]
    lines = [grouped(tables_of(runs)), "", " ".join(notes([run.summary for run in runs])), "",
             "| run | method | layers | hyperparameters | moments |", "|---|---|---|---|---|"]
    for path in paths:
        settings = read_json(Path(path) / "run.json")
        if settings["hyperparameters"] is None:  # nothing was edited
            continue
        preset = settings["hyperparameters"].get("preset", "")
        lines.append(f"| {Path(path).name} | {settings['method']} | {settings['layers']} | "
                     f"{preset} | {moments(settings['moments'])} |")
    return "\n".join(lines)


def grouped(tables: list[list[list[str]]]) -> str:
    """`tables_of`'s cells as a table for each question, measures in words; differences folded."""
    out = []
    for head, *cells in tables:
        found = [f"**{title}**\n\n" + "\n".join(
            f"| {' | '.join(line)} |" for line in (["", *head[1:]], ["---"] * len(head), *lines))
            for title, lines in parted(cells).items()]
        if head[0]:  # "minus RUN"
            found = [f'<details markdown="1">\n<summary>{head[0]}: paired differences</summary>',
                     *found, "</details>"]
        out += found
    return "\n\n".join(out)


def parted(cells: list[list[str]]) -> dict[str, list[list[str]]]:
    """The lines of each part that has any, after the line of n; labels become words."""
    names = {about.label: name for name, about in MEASURES.items()}
    n, *lines = cells
    values = {names[label]: value for label, *value in lines}

    def line(name: str) -> list[str]:
        label, words = MEASURES[name].label, MEASURES[name].words
        return [words if words.startswith(label) else f"{label}: {words}", *values[name]]

    return {title: [n, *map(line, some)] for title, some in in_parts(values).items()}


def moments(used: str | dict | None) -> str:
    """What C was counted on, as a run's settings say it: {layer: {"corpus", "tokens", …}}, in
    older runs a path, None for a method without."""
    if isinstance(used, dict):
        found = {", ".join([Path(c["corpus"] or "given").name,
                            *([] if c["tokens"] is None else [f"{c['tokens']:,} tokens"])])
                 for c in used.values()}
        return "; ".join(sorted(found))
    return "" if used is None else Path(used).name


def by_length(paths: list[str]) -> str:
    """Of the prompts whose answer has so many words: forced, and said in free text."""
    runs = [read_run(path) for path in paths]
    found: dict[int, list[list[tuple[bool, bool]]]] = {}  # words -> by run -> (forced, said)
    for i, run in enumerate(runs):
        for case in run.results:
            if (now := case["measures"].get("wild", {}).get("post")) is None:
                raise RomeError(f"{paths[i]} has no free text; measure it by --measures wild")
            words = min(WORDS, len(now["answers"][0].split()))
            found.setdefault(words, [[] for _ in runs])[i] += [
                (answer["forced"], says(answer["text"], now["answers"], now["instead"]))
                for answer in now["rewrite"]]
    names = [Path(path).name for path in paths]
    lines = [["words of the answer", "n", *(f"{name}: {what}" for name in names
                                            for what in ("forced", "said"))]]
    lines.append(["---"] * len(lines[0]))
    for words, of_runs in sorted(found.items()):
        cells = [share([pair[i] for pair in pairs]) for pairs in of_runs for i in (0, 1)]
        label = f"{words} or more" if words == WORDS else str(words)
        lines.append([label, str(max(map(len, of_runs))), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(values: list[bool]) -> str:
    """Percent, and its interval."""
    if not values:
        return ""
    percent = 100 * sum(values) / len(values)
    low, high = wilson(percent, len(values))
    return f"{percent:.1f} [{low:.1f}, {high:.1f}]"


def put(page: str, name: str, text: str) -> str:
    """The page with the text between its markers. Raises RomeError where it has none."""
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise RomeError(f"the page has no {first} and {last}; put them where the table goes")
    return f"{before}{first}\n{text}\n{last}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--page", metavar="FILE")
    parser.add_argument("--name", default="results", help="of the page's markers")
    parser.add_argument("--lengths", action="store_true", help="by the answer's words instead")
    args = parser.parse_args()
    text = by_length(args.runs) if args.lengths else table(args.runs)
    if args.page is None:
        print(text)
    else:
        write_whole(args.page, put(Path(args.page).read_text("utf-8"), args.name, text))
