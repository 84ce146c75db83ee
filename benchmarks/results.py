"""The results page's table from run directories.

  python benchmarks/results.py runs/rome runs/ft runs/none --page docs/results.md
  python benchmarks/results.py runs/qa-rome runs/qa-context --page docs/results.md --name qaedit

Measures with [low, high], the ends of their 95 % intervals, and paired differences to the first
run. Takes the place of what stands between the page's two markers of that name; without --page it
is printed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rome_mlx.errors import RomeError
from rome_mlx.storage.files import read_json, write_whole
from rome_mlx.view.compare import markdown, read_run


def table(paths: list[str]) -> str:
    """The runs' measures, and what each was run with."""
    lines = [markdown([read_run(path) for path in paths]), "",
             "| run | method | layers | hyperparameters | moments |", "|---|---|---|---|---|"]
    for path in paths:
        settings = read_json(Path(path) / "run.json")
        if settings["hyperparameters"] is None:  # nothing was edited
            continue
        preset = settings["hyperparameters"].get("preset", "")
        lines.append(f"| {Path(path).name} | {settings['method']} | {settings['layers']} | "
                     f"{preset} | {moments(settings['moments'])} |")
    return "\n".join(lines)


def moments(used: str | dict | None) -> str:
    """What C was counted on, as a run's settings say it: {layer: {"corpus", "tokens", …}}, in
    older runs a path, None for a method without."""
    if isinstance(used, dict):
        found = {", ".join([Path(c["corpus"] or "given").name,
                            *([] if c["tokens"] is None else [f"{c['tokens']:,} tokens"])])
                 for c in used.values()}
        return "; ".join(sorted(found))
    return "" if used is None else Path(used).name


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
    args = parser.parse_args()
    if args.page is None:
        print(table(args.runs))
    else:
        write_whole(args.page, put(
            Path(args.page).read_text("utf-8"), args.name, table(args.runs)))
