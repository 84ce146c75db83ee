"""Does the trace tell where to edit? Indirect effects and edit scores by layer, on one plot.

  python benchmarks/layer_sweep.py --data counterfact.json --limit 20 --layers 2,4,6,8 \\
      --corpus wikipedia_articles.txt --output runs/layers --plot layers.png --json layers.json

Every layer is edited on its own, over the same cases. Where a run was stopped it goes on, and more
layers or cases can be added. Second moments that OUTPUT/moments lacks are counted on the corpus.
The effects are the averages that come with the package for the model, or those of --facts.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.figure import Figure  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.cli.common import layer_list, positive, write_json  # noqa: E402
from rome_mlx.editing.layer_choice import stored_profile  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.run import evaluate  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.loading import describe  # noqa: E402
from rome_mlx.tracing.decision import scaled_window  # noqa: E402
from rome_mlx.view.plot import save  # noqa: E402

SCORES = {"score": ("S", "black", "o-"), "rewrite_success": ("ES", "#d55e00", "^:"),
          "paraphrase_success": ("PS", "#0072b2", "s:"),
          "neighborhood_success": ("NS", "#009e73", "v:")}
EFFECTS = {"hidden": ("AIE of the hidden state", "#5e3c99"), "mlp": ("AIE of MLPs", "#e7969c")}


def main() -> None:
    args = arguments()
    output = Path(args.output)
    model, tokenizer = rm.load(args.model)
    decoder = Decoder(model)
    cases = read_counterfact(args.data, args.limit)
    layers = args.layers or list(range(0, len(decoder.layers), 2))
    moments = output / "moments"
    if args.method not in ("ft", "ft-l"):
        moments.mkdir(parents=True, exist_ok=True)
        rm.second_moments(model, tokenizer, layers, args.corpus, args.tokens, output=moments,
                          progress=True)
    by_layer = {}
    for layer in layers:
        by_layer[layer] = evaluate(
            model, tokenizer, cases, output=output / f"layer_{layer}", layer=layer,
            method=args.method, moments=moments, progress=sys.stderr.isatty(), seed=args.seed,
            hyperparameters=args.hyperparameters)
        print(f"layer {layer}: " + ", ".join(f"{SCORES[n][0]} {by_layer[layer][n]['mean']:.1f}"
                                             for n in SCORES if n in by_layer[layer]), flush=True)
    result = {"model": describe(model, tokenizer), "method": args.method, "cases": len(cases),
              "tokens": args.tokens, **effects(model, tokenizer, decoder, args),
              "scores": {layer: {n: found[n] for n in SCORES if n in found}
                         for layer, found in by_layer.items()},
              "unedited": next(iter(by_layer.values()))["unedited"]}
    write_json(args.json, result)
    if args.plot:
        draw(result, args.plot)


def effects(model, tokenizer, decoder, args) -> dict:
    """{"facts", "aie": {kind: {"mean", "ci95"}}} at the subject's last token."""
    if args.facts is None:
        profile = stored_profile(decoder)
        if profile is None:
            raise SystemExit("there is no profile of this model; give --facts")
        aie, facts = profile["aie"], profile["facts_used"]
    else:
        found = rm.average_effects(
            model, tokenizer, rm.read_facts(args.facts)[:args.fact_limit], tuple(EFFECTS),
            window=scaled_window(len(decoder.layers)), token_range="subject_last",
            output=Path(args.output) / "effects", progress=True)
        aie, facts = found.to_json()["aie"], found.facts_used
    return {"facts": facts, "aie": {kind: aie[kind]["subject_last"] for kind in EFFECTS}}


def draw(result: dict, path: str) -> None:
    """Scores on the left axis with 95 % intervals, effects on the right one with bands."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    right = axes.twinx()
    for kind, (words, color) in EFFECTS.items():
        mean, ci95 = result["aie"][kind]["mean"], result["aie"][kind]["ci95"]
        right.plot(range(len(mean)), mean, color=color, linewidth=1.5, label=words)
        right.fill_between(range(len(mean)), *zip(*ci95, strict=True), color=color, alpha=0.2,
                           linewidth=0)
    for name, (words, color, style) in SCORES.items():
        points = sorted(((int(layer), m[name]) for layer, m in result["scores"].items()
                         if name in m), key=lambda point: point[0])
        at, means = [layer for layer, _ in points], [m["mean"] for _, m in points]
        axes.plot(at, means, style, color=color, markersize=4, label=words)
        if name == "score":
            axes.fill_between(at, *zip(*(m["ci95"] for _, m in points), strict=True),
                              color=color, alpha=0.08, linewidth=0)
    axes.set_xlabel("layer: edited, or restored (centre of the window for MLPs)")
    axes.set_ylabel(f"{result['method']}, {result['cases']} cases, percent")
    axes.set_ylim(0, 105)
    right.set_ylabel(f"average indirect effect, {result['facts']} facts")
    right.set_ylim(bottom=0)
    axes.set_zorder(right.get_zorder() + 1)
    axes.set_frame_on(False)
    handles, labels = (a + b for a, b in zip(axes.get_legend_handles_labels(),
                                             right.get_legend_handles_labels(), strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    save(figure, path)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE|HUB", help="CounterFact (default: our own records)")
    parser.add_argument("--limit", type=positive, default=20, help="cases (default 20)")
    parser.add_argument("--layers", type=layer_list, metavar="2,4", help="(default: every second)")
    parser.add_argument("--method", default="rome", help="(default rome)")
    parser.add_argument("--hyperparameters", metavar="published|PRESET")
    parser.add_argument("--corpus", default="self", help="for the moments (default self)")
    parser.add_argument("--tokens", type=positive, default=50_000, help="(default 50000)")
    parser.add_argument("--facts", metavar="FILE", help="trace these (default: stored profile)")
    parser.add_argument("--fact-limit", type=positive, help="the first so many of them")
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
