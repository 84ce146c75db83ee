"""Does a fact's own trace name a better layer to edit than the model's one layer? Paired cases.

  python benchmarks/where_to_edit.py --data counterfact.json --first 150 --limit 60 \\
      --corpus wikipedia_articles.txt --output runs/where --json where.json

Every case is traced at the subject's last token, MLPs in the paper's window, with the subject
hidden by noise and by the embeddings of other subjects of as many tokens (Zhang and Nanda
2309.16042), and read as probability and as log probability; each names a layer by the one rule.
One more is read from the path: what a restored hidden state loses when the MLPs above are severed.
The case is then edited at each of these layers, at the model's own and at 15 % of the depth. Said
of each rule: whether halves of the samples name the same layer, and the paired differences of its
scores to the model's layer, over all cases and over those where the trace is clear.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.cli.common import positive, write_json  # noqa: E402
from rome_mlx.editing.hyperparameters import depth_layer  # noqa: E402
from rome_mlx.editing.layer_choice import layer_to_edit  # noqa: E402
from rome_mlx.editing.methods.rome import ROME, rank_one_edits  # noqa: E402
from rome_mlx.evaluation import metrics  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.summary import differences  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.models.tokens import encode  # noqa: E402
from rome_mlx.models.weights import weight_shape  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402
from rome_mlx.tracing.corruption import Corruption  # noqa: E402
from rome_mlx.tracing.decision import decide, first_candidate, scaled_window  # noqa: E402
from rome_mlx.tracing.restore import hidden_cells, window_cells  # noqa: E402
from rome_mlx.tracing.trace import FactRuns  # noqa: E402

SAMPLES = 10
RULES = ("noise", "noise, log", "others", "others, log", "severed")


@dataclass(frozen=True)
class OtherSubjects(Corruption):
    """Other subjects' embeddings in place of the subject's. embeddings: (samples, tokens, dim)."""

    embeddings: mx.array = field(default=None, compare=False)

    def apply(self, embeddings, begin, end, samples, seed=1):
        rows = mx.repeat(embeddings, samples, axis=0)
        return mx.concatenate([rows[:, :begin], self.embeddings, rows[:, end:]], axis=1)


def main() -> None:
    args = arguments()
    model, tokenizer = rm.load(args.model)
    decoder = Decoder(model)
    cases = read_counterfact(args.data)
    chosen = cases[args.first:][:args.limit]
    width = weight_shape(decoder.module(decoder.dense_layers[0], "down"))[1]
    moments = Path(args.output) / "moments"
    moments.mkdir(parents=True, exist_ok=True)
    rm.second_moments(model, tokenizer, decoder.dense_layers, args.corpus, 10 * width,
                      output=moments, progress=True)
    own = layer_to_edit(decoder, ROME, hyperparameters=args.hyperparameters).layer
    hp = ROME.resolve(args.hyperparameters, decoder)
    templates = ROME.kept_templates(model, tokenizer, 0, hp)
    subjects = by_length(tokenizer, cases)

    def measured(case) -> dict:
        traced = traces(model, tokenizer, case.request.fact, subjects)
        layers = {"own": own, "depth": depth_layer(decoder),
                  **{rule: traced[rule]["layer"] for rule in RULES}}
        unedited, found = metrics.case_scores(model, tokenizer, case), {}
        for layer in set(layers.values()):
            edit, = rank_one_edits("rome", model, tokenizer, [case.request], layer,
                                   moments=moments, hyperparameters=hp,
                                   context_templates=templates)
            with edit.applied(model):
                found[layer] = metrics.case_measures(
                    metrics.case_scores(model, tokenizer, case), unedited)
        return {"traces": traced, "layers": layers,
                "edited": {rule: found[layer] for rule, layer in layers.items()},
                "unedited": metrics.case_measures(unedited, unedited)}

    run = Run(Path(args.output) / "cases", {"layer": own, "samples": SAMPLES},
              Identity.of(model))
    results = run.map([Item(f"case_{case.case_id}", {"case": case.case_id}) for case in chosen],
                      lambda group, todo: {i: measured(chosen[i]) for i in todo},
                      progress=True, unit="case")
    summary = {"own_layer": own, "cases": len(results), "rules": rules(results)}
    show(summary)
    write_json(args.json, summary)


def by_length(tokenizer, cases) -> dict[int, list[list[int]]]:
    """{number of tokens: ids of subjects that have it}, as they stand in their prompts."""
    found: dict[int, list[list[int]]] = {}
    for case in cases:
        fact = case.request.fact
        encoded = encode(tokenizer, fact.text)
        begin, end = encoded.range(*fact.subject_span)
        found.setdefault(end - begin, []).append(encoded.ids[begin:end])
    return found


def traces(model, tokenizer, fact, subjects) -> dict:
    """{rule: {"layer", "clear", "halves": [layer, layer]}}, halves of the samples."""
    decoder = Decoder(model)
    out = {}
    encoded = encode(tokenizer, fact.text)
    begin, end = encoded.range(*fact.subject_span)
    others = [ids for ids in subjects.get(end - begin, []) if ids != encoded.ids[begin:end]]
    random = np.random.RandomState(0)
    picked = [others[i] for i in random.permutation(len(others))[:SAMPLES]] if others else []
    ways = {"noise": "s3"}
    if len(picked) == SAMPLES:
        ways["others"] = OtherSubjects("others", "others", embeddings=decoder.embed(picked))
    for name in ("noise", "others"):
        runs = FactRuns(model, tokenizer, fact, samples=SAMPLES, noise=ways.get(name, "s3"))
        window = scaled_window(runs.layers)
        restored = runs._restoration("mlp", None).scores(runs.subject[1] - 1, window_cells(
            runs.layers, window))  # (layers, samples)
        first, effects = first_candidate("mlp", window), {}
        for rule, read in ((name, lambda p: p), (f"{name}, log", np.log)):
            total = float((read(np.float64(runs.clean_prob)) - read(runs.base)).mean())
            effects[rule] = read(restored) - read(runs.base), total, first
        if name == "noise":
            effects["severed"] = (path_effect(runs), effects["noise"][1],
                                  first_candidate("hidden", window))
        out |= {rule: decided(*effect) for rule, effect in effects.items()}
    return out


def path_effect(runs) -> np.ndarray:
    """(layers, samples) effect of the hidden state that goes through the MLPs above it."""
    whole, severed = (
        runs._restoration("hidden", path).scores(runs.subject[1] - 1, hidden_cells(runs.layers))
        for path in (None, "mlp"))
    return whole - severed


def decided(effect: np.ndarray, total: float, first: int) -> dict:
    """What the rule of `decision` says of the mean over samples, and of their halves."""
    decision = decide(effect.mean(1), total, first)
    return {"layer": decision.layer, "clear": decision.clear, "halves": [
        decide(half.mean(1), total, first).layer for half in np.split(effect, 2, axis=1)]}


def rules(results: list[dict]) -> dict:
    """Of every rule: agreement of halves, and paired differences to the model's own layer."""
    out = {}
    for rule in ("depth", *RULES):
        found = {"layers": [r["layers"][rule] for r in results]}
        subsets = {"all": results}
        if rule in RULES:
            halves = np.array([r["traces"][rule]["halves"] for r in results])
            apart = np.abs(halves[:, 0] - halves[:, 1])
            found |= {"same": float(np.mean(apart == 0)), "near": float(np.mean(apart <= 1))}
            subsets["clear"] = [r for r in results if r["traces"][rule]["clear"]]
        for name, some in subsets.items():
            if len(some) > 1:
                ids = range(len(some))
                found[name] = {"cases": len(some), **differences(
                    [r["edited"]["own"] for r in some], [r["edited"][rule] for r in some],
                    metrics.SCORE, ids, ids)}
        out[rule] = found
    return out


def show(summary: dict) -> None:
    print(f"{summary['cases']} cases, against the model's layer {summary['own_layer']}:\n"
          "rule          cases       halves same/near    PS                  NS               S")
    for rule, found in summary["rules"].items():
        for name in ("all", "clear"):
            if name not in found:
                continue
            halves = f"{found['same']:.2f} / {found['near']:.2f}" if "same" in found else ""
            cells = [f"{found[name][m]['mean']:+.1f} [{found[name][m]['ci95'][0]:+.1f}, "
                     f"{found[name][m]['ci95'][1]:+.1f}]"
                     for m in ("paraphrase_success", "neighborhood_success", "score")]
            print(f"{rule:<13} {name} {found[name]['cases']:<6} {halves:<12}  {'  '.join(cells)}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=positive, default=60)
    parser.add_argument("--corpus", required=True, metavar="FILE")
    parser.add_argument("--hyperparameters", metavar="FILE", help="a calibration")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
