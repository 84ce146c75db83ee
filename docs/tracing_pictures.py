"""Draw the pictures of docs/tracing.md: a few minutes on the default model.

  python docs/tracing_pictures.py [--published published_aie_gpt2-xl.json]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import rome_mlx as rm
from rome_mlx.storage.places import data_path
from rome_mlx.view.plot import _LINES, plot_severed, plot_traces

IMAGES = Path(__file__).parent / "images"
PLACES = [("The Eiffel Tower", "Paris"), ("The Colosseum", "Rome"), ("The Louvre", "Paris"),
          ("The Brandenburg Gate", "Berlin")]
LONG = ("Every summer, when the heat settles over the old streets, thousands of visitors queue for "
        "hours to climb {}, which is located in the city of")


def maps(model, tokenizer) -> None:
    fact = rm.Fact("{} is located in the city of", "The Eiffel Tower")
    plot_traces([rm.trace(model, tokenizer, fact, kind=kind, samples=4)
                 for kind in ("hidden", "mlp", "attn")], IMAGES / "tracing-maps.png")
    rm.trace(model, tokenizer, rm.Fact(LONG, "the Eiffel Tower"), samples=2).plot(
        IMAGES / "tracing-long.png")


def severed(model, tokenizer) -> None:
    fact = rm.Fact("The capital of {} is", "France")
    intact, *cut = (rm.trace(model, tokenizer, fact, token_range="subject_last", severed=path)
                    for path in (None, "mlp", "attn"))
    plot_severed(intact, cut, IMAGES / "tracing-severed.png")


def averages(model, tokenizer) -> None:
    facts = [rm.Fact("{} is located in the city of", *place) for place in PLACES]
    rm.average_effects(model, tokenizer, facts, samples=2, window=6).plot(
        IMAGES / "tracing-averages.png")


def profile(published: Path | None) -> None:
    """The stored profile, and what others published for GPT-2 XL, by depth."""
    found = json.loads(next(data_path().glob("profile-smollm2*.json")).read_text("utf-8"))
    figure = Figure(figsize=(9 if published else 5, 3.4), layout="constrained")
    panels = figure.subplots(1, 2 if published else 1, squeeze=False, sharey=True)[0]
    for kind, classes in found["aie"].items():
        mean, ci95 = (np.array(classes["subject_last"][name]) for name in ("mean", "ci95"))
        panels[0].fill_between(range(len(mean)), *ci95.T, color=_LINES[kind], alpha=0.15)
        panels[0].plot(mean, color=_LINES[kind], label=kind)
    panels[0].set_title(f"SmolLM2-135M, {found['facts_used']} facts, windows of "
                        f"{found['window']}", fontsize=9)
    panels[0].set_ylabel("AIE at the last subject token")
    panels[0].legend(fontsize=8, frameon=False)
    if published:
        effects = json.loads(published.read_text("utf-8"))["layer_effects"]
        panels[1].plot([effects[str(i)] for i in range(len(effects))], color=_LINES["hidden"])
        panels[1].set_title("GPT-2 XL, 150 facts, hidden (published by others)", fontsize=9)
    for axes in panels:
        axes.set_xlabel("layer")
        axes.axhline(0, color="black", linewidth=0.5)
    figure.savefig(IMAGES / "tracing-profile.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, metavar="FILE",
                        help="effects of GPT-2 XL by layer, {\"layer_effects\": {layer: AIE}}")
    parser.add_argument("--profile-only", action="store_true", help="trace nothing")
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    profile(args.published)
    if not args.profile_only:
        for draw in (maps, severed, averages):
            draw(*rm.load())


if __name__ == "__main__":
    main()
