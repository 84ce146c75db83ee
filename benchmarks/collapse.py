"""Edits one after another: what they still do, and what becomes of the model.

  python benchmarks/collapse.py --data counterfact.json --output runs/collapse --count 100

Each method writes the cases from --first on, one a call, every edit on the model that carries
those before it. Every ten edits: success of the latest ten, retention of the first ten, success on
neighbors (two of each of the first ten cases and of the ten records before them), perplexity on
data/neutral.txt and the norm of the weights. Edits are kept in --output, where a run that is
stopped goes on. Draws collapse.png there.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.editing.methods import find_method  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.metrics import case_measures, case_scores  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

EVERY = 10
PANELS = (("latest", "the latest ten edits hold, %"), ("first", "the first ten edits hold, %"),
          ("neighbors", "neighbors keep their answer, %"), ("perplexity", "perplexity"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="CounterFact records, JSON")
    parser.add_argument("--first", type=int, default=400, help="position of the first case")
    parser.add_argument("--count", type=int, default=100, help="edits (default 100)")
    parser.add_argument("--methods", default="rome,r-rome,memit,ft", help="(default %(default)s)")
    parser.add_argument("--hyperparameters", help="published, or a preset (default: the model's)")
    parser.add_argument("--layer", type=int, help="(default: the hyperparameters')")
    parser.add_argument("--output", required=True, metavar="DIR", help="where it resumes")
    args = parser.parse_args()
    model, tokenizer = rm.load(dtype="float32")
    cases = read_counterfact(args.data)[args.first - EVERY: args.first + args.count]
    output = Path(args.output)
    table = {}
    for name in args.methods.split(","):
        table[name] = sequence(model, tokenizer, name, cases, args.layer, args.hyperparameters,
                               output / name)
        draw(table, output / "collapse.png")


def sequence(model, tokenizer, name: str, cases, layer, hp, directory: Path) -> list[dict]:
    """A row every ten edits; the model is restored at the end."""
    written, method = cases[EVERY:], find_method(name)
    run = Run(directory, {"method": name, "hyperparameters": hp, "layer": layer},
              Identity.of(model))
    watched = [replace(case, neighbors=case.neighbors[:2])
               for case in (*written[:EVERY], *cases[:EVERY])]
    unedited = [case_scores(model, tokenizer, case) for case in watched]
    guard, applied, rows = rm.Guard(model, tokenizer), [], []
    resolved = method.resolve(hp, Decoder(model))
    templates = method.templates(model, tokenizer, 0, resolved)
    where = None if layer is None else method.layers_up_to(layer, resolved)
    try:
        for i, case in enumerate(written):
            if not (directory / f"{i}").exists():
                method.write(model, tokenizer, case.request, where, hyperparameters=hp,
                             context_templates=templates).save(directory / f"{i}")
            applied.append(rm.load_edit(directory / f"{i}"))
            applied[-1].apply(model)
            if (i + 1) % EVERY == 0:
                latest = written[i + 1 - EVERY: i + 1]
                item = Item(f"after_{i + 1}", {"latest": [case.case_id for case in latest]})
                rows.append(run.one(item, lambda latest=latest: state(
                    model, tokenizer, latest, watched, unedited, guard.check())))
                print(name, rows[-1], flush=True)
    finally:
        for edit in reversed(applied):
            edit.revert(model)
    return rows


def state(model, tokenizer, latest, watched, unedited, health) -> dict:
    new = [case_scores(model, tokenizer, replace(case, paraphrases=(), neighbors=()))
           for case in latest]
    now = [case_measures(case_scores(model, tokenizer, case), before)
           for case, before in zip(watched, unedited, strict=True)]
    won = [case_measures(scores, scores) for scores in new]
    return {"edits": health.edits,
            "latest": float(np.mean([m["rewrite_success"] for m in won])),
            "first": float(np.mean([m["rewrite_success"] for m in now[:EVERY]])),
            "neighbors": float(np.mean([m["neighborhood_kept"] for m in now
                                        if "neighborhood_kept" in m])),
            "perplexity": health.perplexity, "perplexity_before": health.perplexity_before,
            "growth": max(health.growth.values())}


def draw(table: dict[str, list[dict]], path: Path) -> None:
    """Four panels over the number of edits, a line a method."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for i, (name, rows) in enumerate(table.items()):  # thinner, so that none is hidden
            axes.plot([row["edits"] for row in rows], [row[key] for row in rows], marker="o",
                      markersize=3, linewidth=max(1.5, 6 - 1.5 * i), label=name)
        axes.set_xlabel("edits applied")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(label)
        if key == "perplexity":
            before = next(row["perplexity_before"] for rows in table.values() for row in rows)
            highest = max(row[key] for rows in table.values() for row in rows)
            axes.axhline(before, color="grey", linestyle=":", label="unedited")
            axes.set_yscale("log" if highest > 10 * before else "linear")
            axes.set_ylim(0.5 * before, max(2 * before, 1.1 * highest))
            axes.legend()
        else:
            axes.set_ylim(-3, 103)
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    main()
