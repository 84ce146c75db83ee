"""How well do estimated traces agree with exact ones, and how much faster are they?

  OPENBLAS_NUM_THREADS=1 python benchmarks/attribution.py --facts known_facts.json --limit 50 \\
      --output agreement --json agreement.json

Facts that the model does not know are skipped, until `--limit` known ones are found. Exact maps of
all three kinds are kept in --output, a file a fact, so that a run that was stopped goes on and the
estimates can be measured again. "Finds largest": the exact map's largest cell is one of those that
`trace --fast` recomputes. Seconds are the processor's: what else runs counts less.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import timing  # noqa: F401  finds rome_mlx
from scipy.stats import spearmanr

import rome_mlx as rm
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.identity import Identity
from rome_mlx.models.probabilities import first_choice
from rome_mlx.storage.fact_files import read_facts
from rome_mlx.storage.files import read_json, write_json
from rome_mlx.storage.run_store import Item, Run
from rome_mlx.tracing.attribution import Estimates, cells_that_matter
from rome_mlx.tracing.corruption import corruption
from rome_mlx.tracing.decision import decide, first_candidate, scaled_window
from rome_mlx.tracing.trace import KINDS, FactRuns

SAMPLES, WINDOW = 10, 10
COUNTERFACT = Path(__file__).parent.parent / "data/counterfact.json"


def facts_of(path: str | None) -> list[rm.Fact]:
    """Facts of a file; by default those of the requests in our own data."""
    if path is not None:
        return read_facts(path)
    requests = [case["requested_rewrite"] for case in read_json(COUNTERFACT)]
    return [rm.Fact(r["prompt"], r["subject"], r["target_true"]["str"]) for r in requests]


def exact(model, tokenizer, fact: rm.Fact, rule) -> dict:
    """The exact maps of one fact, as they are kept; a reason where the model does not know it."""
    answer = tokenizer.decode([first_choice(model, tokenizer, fact.text)])
    if answer.strip() != fact.attribute.strip():
        return {"answer": answer, "reason": f"the model says {answer!r}, not {fact.attribute!r}"}
    start, busy = time.perf_counter(), time.process_time()
    runs = FactRuns(model, tokenizer, fact, samples=SAMPLES, noise=rule)
    traces = [runs.trace(kind, WINDOW, None, "all") for kind in KINDS]
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    return {"answer": answer, **took, "subject_range": list(runs.subject),
            "tokens": len(runs.ids), "clean_prob": traces[0].clean_prob,
            "corrupted_prob": traces[0].corrupted_prob,
            "scores": {trace.kind: trace.scores.tolist() for trace in traces},
            "deciding": traces[0].deciding.tolist()}


def agreement(model, tokenizer, fact: rm.Fact, rule, kept: dict) -> dict:
    """What the estimates of one fact say beside its exact maps."""
    start, busy = time.perf_counter(), time.process_time()
    estimates = Estimates(FactRuns(model, tokenizer, fact, samples=SAMPLES, noise=rule))
    traces = [estimates.trace(kind, WINDOW, "all") for kind in KINDS]
    found = {"subject": fact.subject, "exact_s": kept.get("cpu_seconds"),
             "fast_s": time.process_time() - busy, "fast_wall_s": time.perf_counter() - start}
    begin, end = kept["subject_range"]
    for trace in traces:
        fast, true = trace.scores[begin:], np.array(kept["scores"][trace.kind])[begin:]
        rows = fast[end - 1 - begin], true[end - 1 - begin]
        position, layer = np.unravel_index(true.argmax(), true.shape)
        found[trace.kind] = {
            "cells": spearmanr(fast.ravel(), true.ravel())[0],
            "layers": spearmanr(*rows)[0], "apart": abs(int(rows[0].argmax() - rows[1].argmax())),
            "finds_largest": (begin + position, layer) in cells_that_matter(trace),
            "error": float(np.abs(fast - true).mean()), "largest": float(np.abs(fast - true).max())}
    window = scaled_window(len(kept["deciding"]))
    true = decide(np.array(kept["deciding"]) - kept["corrupted_prob"],
                  kept["clean_prob"] - kept["corrupted_prob"], first_candidate("mlp", window))
    fast = traces[0].decision
    return found | {"decision": {"apart": abs(fast.layer - true.layer), "clear": true.clear,
                                 "same_clear": fast.clear == true.clear}}


def summary(found: list[dict]) -> dict:
    """Means over facts, the median of seconds and of their ratio."""
    kinds = {kind: {
        **{name: float(np.nanmean([one[kind][name] for one in found]))
           for name in ("cells", "layers", "finds_largest", "error",
                                                         "largest")},
        "top_layer_same": float(np.mean([one[kind]["apart"] == 0 for one in found])),
        "top_layer_within_1": float(np.mean([one[kind]["apart"] <= 1 for one in found]))}
        for kind in KINDS}
    timed = [(one["exact_s"], one["fast_s"]) for one in found if one["exact_s"]]
    both = np.array(timed) if timed else np.full((1, 2), np.nan)
    decisions = [one["decision"] for one in found]
    return {"facts": len(found), **kinds, "timed_facts": len(timed),
            "exact_s": float(np.median(both[:, 0])), "fast_s": float(np.median(both[:, 1])),
            "ratio": float(np.median(both[:, 0] / both[:, 1])),
            "decision_within_1": float(np.mean([one["apart"] <= 1 for one in decisions])),
            "decision_clear_same": float(np.mean([one["same_clear"] for one in decisions]))}


def show(result: dict) -> None:
    print(f"{result['facts']} facts\n{'':8}cells  layers  top layer  within 1  "
          "finds largest  error  largest error")
    for kind in KINDS:
        row = result[kind]
        print(f"{kind:8}{row['cells']:5.2f}  {row['layers']:6.2f}  {row['top_layer_same']:9.0%}  "
              f"{row['top_layer_within_1']:8.0%}  {row['finds_largest']:13.0%}  "
              f"{row['error']:5.3f}  {row['largest']:13.3f}")
    print(f"all three: exact {result['exact_s']:.1f} s, estimated {result['fast_s']:.2f} s, "
          f"{result['ratio']:.1f} times faster (medians of {result['timed_facts']} facts)\n"
          f"decisive layer within 1: {result['decision_within_1']:.0%}, as clear: "
          f"{result['decision_clear_same']:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", metavar="FILE", help="default: those of data/counterfact.json")
    parser.add_argument("--limit", type=int, default=50, help="known facts (default 50)")
    parser.add_argument("--output", metavar="DIR", help="where exact maps are kept")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    model, tokenizer = rm.load()
    rule = corruption(Decoder(model), tokenizer, "s3")
    run = Run(args.output, {"kinds": list(KINDS), "samples": SAMPLES, "noise": rule.rule,
                            "noise_level": rule.level, "window": WINDOW, "noise_seed": 1},
              Identity.of(model))
    found = []
    for i, fact in enumerate(facts_of(args.facts)):
        item = Item(f"fact_{i}", {"prompt": fact.prompt, "subject": fact.subject})
        kept, = run.map([item], lambda group, todo, fact=fact: {
            0: exact(model, tokenizer, fact, rule)})
        if "reason" not in kept:
            found.append(agreement(model, tokenizer, fact, rule, kept))
            print(f"{len(found)}: {fact.text}", file=sys.stderr)
        if len(found) == args.limit:
            break
    result = summary(found)
    show(result)
    write_json(args.json, result | {"of": found})


if __name__ == "__main__":
    main()
