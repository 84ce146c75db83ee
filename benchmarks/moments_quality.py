"""How many tokens do second moments need, and which? Directions and edits by text and count.

  python benchmarks/moments_quality.py --text articles.txt --cases counterfact.json --output DIR

Key moments of one layer are counted on the text and on the model's own samples, kept at each
number of tokens. Then ROME writes the first CounterFact cases with each of them, with the
identity in place of C, and the same value v*, which does not depend on C. Every step is kept in
DIR, so that a run that is stopped goes on.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from timing import rm

from rome_mlx.editing.edit import Edit
from rome_mlx.editing.key import in_contexts, read_keys
from rome_mlx.editing.lowrank import LowRank
from rome_mlx.editing.methods.rome import ROME, inverse_direction, rank_one_update
from rome_mlx.editing.templates import context_templates
from rome_mlx.editing.value import optimize_values
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.metrics import case_measures, case_scores
from rome_mlx.evaluation.summary import summarize
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import Identity
from rome_mlx.moments import store
from rome_mlx.moments.quality import subject_keys
from rome_mlx.storage.run_store import Item, Run

SIZES = {"text": (3_000, 10_000, 30_000, 100_000, 300_000),
         "self": (3_000, 10_000, 30_000, 100_000)}
RIDGE = 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, metavar="FILE", help="what is called text")
    parser.add_argument("--cases", required=True, metavar="FILE", help="CounterFact records")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--limit", type=int, default=20, help="cases (default 20)")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = rm.load()
    matrices = counted(model, tokenizer, args.layer, args.text, output)
    directions(model, tokenizer, args.layer, matrices)
    cases = read_counterfact(args.cases, args.limit)
    run = Run(output / "cases", {"layer": args.layer, "moments": list(matrices)},
              Identity.of(model))
    records = run.map([Item(f"case_{case.case_id}", {"request": vars(case.request)})
                       for case in cases],
                      lambda group, todo: {i: case_record(model, tokenizer, cases[i], args.layer,
                                                          matrices) for i in todo})
    rows = table(records, matrices)
    run.finish({"layer": args.layer, "cases": len(records), "rows": rows})
    print(f"layer {args.layer}, {len(records)} cases; cosine to {largest(matrices)}")
    print("moments          tokens  cosine    ES    PS    NS     S")
    for row in rows:
        numbers = " ".join(f"{row[m]['mean']:5.1f}" for m in MEASURES)
        print(f"{row['name']:14} {row['tokens']:8,}  {row['cosine']:.4f} {numbers}")
    if args.plot:
        plot(rows, args.plot)


def counted(model, tokenizer, layer: int, text: str, output: Path) -> dict:
    """{name: (C, tokens)}: identity, text-3000, ...; each size extends the one before."""
    matrices = {}
    for name, corpus in (("text", text), ("self", "self")):
        work = output / f"moments-{name}"
        for size in SIZES[name]:
            kept = output / f"{name}-{size}.safetensors"
            if not kept.exists():
                rm.second_moments(model, tokenizer, [layer], corpus, size, output=work,
                                  progress=True)
                shutil.copy(store.layer_path(work, layer), kept)
            moment, _ = store.read(kept)
            matrices[f"{name}-{size}"] = (moment.value(), moment.count)
    thin = "text-3000"
    matrices[f"{thin}+ridge"] = (ridged(matrices[thin][0]), matrices[thin][1])
    width = len(matrices[thin][0])
    return {"identity": (np.eye(width), 0), **matrices}


def directions(model, tokenizer, layer: int, matrices: dict) -> None:
    """Print the mean cosine of C⁻¹k to the largest text's, over 64 well-known subjects' keys."""
    keys = subject_keys(Decoder(model), tokenizer, layer)
    found = {name: np.linalg.solve(matrix, keys.T).T for name, (matrix, _) in matrices.items()}
    found = {name: u / np.linalg.norm(u, axis=1, keepdims=True) for name, u in found.items()}
    print(f"layer {layer}, 64 subjects: cosine to {largest(matrices)}")
    for name, vectors in found.items():
        cosines = (vectors * found[largest(matrices)]).sum(axis=1)
        print(f"{name:16} {cosines.mean():.4f}, lowest {cosines.min():.4f}", flush=True)


def ridged(matrix: np.ndarray) -> np.ndarray:
    return matrix + RIDGE * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def largest(matrices: dict) -> str:
    return max((name for name in matrices if name.startswith("text")),
               key=lambda name: matrices[name][1])


def case_record(model, tokenizer, case, layer: int, matrices: dict) -> dict:
    """{"pre": measures, "post": {name: measures}, "cosine": {name: to the largest text's}}."""
    decoder, hp, request = Decoder(model), ROME.published, case.request
    templates = context_templates(model, tokenizer, 0)
    readings = read_keys(decoder, tokenizer, in_contexts(request, templates), layer)
    key, output = readings.keys[0], readings.outputs[0]  # of the bare prompt
    value, = optimize_values(decoder, tokenizer, [request], templates, layer, hp)
    directions = {name: inverse_direction(matrix, readings.keys.mean(0))
                  for name, (matrix, _) in matrices.items()}
    best = directions[largest(matrices)]
    before, post = case_scores(model, tokenizer, case), {}
    for name, direction in directions.items():
        right, left = rank_one_update(key, direction, value.initial + value.delta, output)
        edit = Edit("rome", [request], {decoder.path(layer, "down"):
                                        LowRank(left[:, None], right[None, :])}, [layer])
        with edit.applied(model):
            post[name] = case_measures(case_scores(model, tokenizer, case), before)
    return {"pre": case_measures(before, before), "post": post,
            "cosine": {name: float(d @ best) for name, d in directions.items()}}


MEASURES = ("rewrite_success", "paraphrase_success", "neighborhood_success", "score")


def table(records: list[dict], matrices: dict) -> list[dict]:
    """A row a set of moments; of the unedited model first."""
    measured = {"unedited": [r["pre"] for r in records],
                **{name: [r["post"][name] for r in records] for name in matrices}}
    rows = []
    for name, cases in measured.items():
        summary = summarize(cases)
        cosines = [r["cosine"].get(name, float("nan")) for r in records]
        rows.append({"name": name, "tokens": matrices.get(name, (None, 0))[1],
                     "cosine": float(np.mean(cosines)), **{m: summary[m] for m in MEASURES}})
    return rows


def plot(rows: list[dict], path: str) -> None:
    """Cosine to the largest text's direction, and the score S, by tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for corpus, label, colour in (("text", "Wikipedia text", "C0"),
                                  ("self", "the model's own samples", "C1")):
        chosen = [r for r in rows if r["name"].startswith(corpus + "-") and "+" not in r["name"]]
        tokens = [r["tokens"] for r in chosen]
        left.plot(tokens, [r["cosine"] for r in chosen], "o-", color=colour, label=label)
        right.plot(tokens, [r["score"]["mean"] for r in chosen], "o-", color=colour, label=label)
    identity = next(r for r in rows if r["name"] == "identity")
    for axes, height, title in ((left, identity["cosine"], "cosine of C⁻¹k to the most text's"),
                                (right, identity["score"]["mean"], "score S, %")):
        axes.axhline(height, color="0.5", linestyle="--", label="the identity in place of C")
        axes.set(xscale="log", xlabel="tokens", title=title)
        axes.margins(y=0.2)
    left.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
