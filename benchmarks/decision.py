"""How stable is the layer that `decisive_layer` names? Random halves of the facts of one run.

  rome-mlx locate --facts known_facts.json --token-range subject_last --output located
  python benchmarks/decision.py located
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import timing  # noqa: F401  finds rome_mlx

from rome_mlx.storage.files import read_json
from rome_mlx.tracing.decision import decide, first_candidate, scaled_window


def records(directory: Path) -> list[dict]:
    """Of the facts that were used, in their order."""
    paths = sorted(directory.glob("fact_*.json"), key=lambda path: int(path.stem[5:]))
    found = [read_json(path) for path in paths]
    return [record for record in found if "deciding" in record]


def halves(effects: np.ndarray, choose, splits: int) -> np.ndarray:
    """(splits, 2) layers chosen on the two halves of (facts, ...), split at random."""
    random, out = np.random.RandomState(0), []
    for _ in range(splits):
        order = random.permutation(len(effects))
        out.append([choose(part) for part in np.array_split(order, 2)])
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="what locate --output wrote")
    parser.add_argument("--splits", type=int, default=1000)
    args = parser.parse_args()
    used = records(args.directory)
    window = scaled_window(len(used[0]["deciding"]))
    base = np.array([record["corrupted_prob"] for record in used])
    total = np.array([record["clean_prob"] for record in used]) - base
    effect = {"mlp": np.array([record["deciding"] for record in used]) - base[:, None]}
    if "hidden" in used[0]["scores"]:
        effect["hidden"] = np.array([record["scores"]["hidden"]["subject_last"]
                                     for record in used]) - base[:, None]
    first = first_candidate("mlp", window)

    def rule(kind, start):
        return lambda part: decide(effect[kind][part].mean(0), total[part].mean(), start).layer

    rules = {"the rule": rule("mlp", first), "with windows that hold layer 0": rule("mlp", 0),
             "without smoothing":
                 lambda part: first + int(effect["mlp"][part].mean(0)[first:].argmax())}
    if "hidden" in effect:
        rules["hidden states"] = rule("hidden", 1)
    everything = np.arange(len(used))
    print(f"{len(used)} facts, window {window}, {args.splits} splits\n"
          f"{'':32}layer  halves equal  at most 1 apart  layers named by halves")
    for name, choose in rules.items():
        found = halves(total, choose, args.splits)
        apart = np.abs(found[:, 0] - found[:, 1])
        named = ", ".join(f"{layer}: {count / found.size:.0%}"
                          for layer, count in sorted(Counter(found.ravel().tolist()).items()))
        print(f"{name:32}{choose(everything):>5}  {np.mean(apart == 0):>12.0%}  "
              f"{np.mean(apart <= 1):>15.0%}  {named}")
    clear = [decide(effect["mlp"][i], total[i], first) for i in everything]
    print(f"\na fact on its own is clear for {sum(one.clear for one in clear)} of {len(used)}")


if __name__ == "__main__":
    main()
