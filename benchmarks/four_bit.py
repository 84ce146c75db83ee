"""A fact in a 4-bit model: beside it in float, requantized, rounded, and in its own codes.

  python benchmarks/four_bit.py --data counterfact.json --limit 150 --group-size 32 \\
      --output runs/four-bit-32 --json four_bit_32.json

One ROME edit a case, or with `--together N` one MEMIT edit of N cases, of the model's own layers
and hyperparameters, written into the quantized weights in four ways: `adapter`, ΔW beside them in
float32; `requantized`, scales and codes of W + ΔW anew; `rounded`, W + ΔW to the nearest codes on
the old scales; `codes`, `Edit.quantized`. All are measured on the float32 copy of what results,
which says the same and is fast on a CPU. Said of each: ES, PS and NS, KL on a neutral text, the
share of the weights' codes that changed, seconds beyond the edit; and paired differences to
`adapter`. A run that is stopped goes on where it was; its edits stay in OUTPUT/edits.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.cli.common import positive, write_json  # noqa: E402
from rome_mlx.editing.layer_choice import layers_to_edit  # noqa: E402
from rome_mlx.editing.lowrank import dense  # noqa: E402
from rome_mlx.editing.methods.memit import MEMIT  # noqa: E402
from rome_mlx.editing.methods.rome import ROME, rank_one_edits  # noqa: E402
from rome_mlx.editing.saved import load_edit  # noqa: E402
from rome_mlx.evaluation import metrics  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.side_effects import drift, final_states, neutral_tokens  # noqa: E402
from rome_mlx.evaluation.summary import differences  # noqa: E402
from rome_mlx.intervals import mean_interval  # noqa: E402
from rome_mlx.models.codes import codes_of, scales_of  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.models.weights import cast, weight  # noqa: E402
from rome_mlx.moments.lookup import ensure_moments  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

WAYS = ("adapter", "requantized", "rounded", "codes")
OWN = ("kl", "changed", "seconds")


def main() -> None:
    args = arguments()
    stored, tokenizer = models(args)
    model = cast(models(args)[0], mx.float32)
    decoder = Decoder(model)
    method = ROME if args.together == 1 else MEMIT
    layers = np.atleast_1d(layers_to_edit(decoder, method)).tolist()
    modules = {decoder.path(i, "down"): Decoder(stored).module(i, "down") for i in layers}
    group_size = next(iter(modules.values())).group_size
    moments = ensure_moments(model, tokenizer, layers, args.moments, corpus=args.corpus)
    hp = method.resolve(None, decoder)
    templates = method.kept_templates(model, tokenizer, 0, hp)
    neutral = neutral_tokens(model, tokenizer)
    quiet = final_states(model, neutral)
    cases = read_counterfact(args.data)[args.first:][:args.limit]

    def edited(together) -> rm.Edit:
        kept = Path(args.output) / "edits" / str(together[0].case_id)
        if not kept.exists():
            requests = [case.request for case in together]
            options = {"moments": moments, "hyperparameters": hp, "context_templates": templates}
            (rank_one_edits("rome", model, tokenizer, requests, layers[0], **options)[0]
             if method is ROME else
             rm.memit(model, tokenizer, requests, layers, **options)).save(kept)
        return load_edit(kept)

    def measured(together) -> list[dict]:
        unedited = [metrics.case_scores(model, tokenizer, case) for case in together]
        edit, found = edited(together), {}
        for way, (changes, changed, seconds) in written(edit, modules, stored, tokenizer,
                                                        moments).items():
            deltas = {path: dense(change.T) for path, change in changes.items()}
            with rm.Edit(way, edit.requests, deltas, layers).applied(model):
                same = {"kl": drift(model, neutral, quiet, final_states(model, neutral))["kl"],
                        "changed": 100 * changed, "seconds": seconds}
                found[way] = [metrics.case_measures(metrics.case_scores(model, tokenizer, case),
                                                    before) | same
                              for case, before in zip(together, unedited, strict=True)]
        return [{"ways": {way: one[i] for way, one in found.items()},
                 "unedited": metrics.case_measures(before, before)}
                for i, before in enumerate(unedited)]

    groups = [cases[i: i + args.together] for i in range(0, len(cases), args.together)]
    run = Run(Path(args.output), {"layers": layers, "group_size": group_size,
                                  "together": args.together, "moments": moments.used},
              Identity.of(model))
    items = [Item(f"cases_{i}", {"cases": [case.case_id for case in group]})
             for i, group in enumerate(groups)]
    results = run.map(items, lambda _, todo: {i: {"measured": measured(groups[i])} for i in todo},
                      progress=True, unit="edit")
    results = [one for group in results for one in group["measured"]]
    summary = {"layers": layers, "bits": next(iter(modules.values())).bits,
               "group_size": group_size, "together": args.together, "cases": len(results),
               **summed(results)}
    show(summary)
    write_json(args.json, summary)


def models(args):
    """A quantized model, as it is stored or with other groups, and its tokenizer."""
    model, tokenizer = rm.load(args.model, dtype="stored")
    if args.group_size != Decoder(model).module(0, "down").group_size:
        nn.quantize(cast(model, mx.float32), group_size=args.group_size, bits=4)
    return model, tokenizer


def written(edit, modules: dict, stored, tokenizer, moments) -> dict:
    """{way: ({path: ΔW (out, in) as it comes out}, share of codes that changed, seconds)}."""
    wanted = {path: delta.change.T for path, delta in edit.deltas.items()}
    started = time.monotonic()
    coded = edit.quantized(stored, tokenizer, moments=moments.given).deltas
    seconds = time.monotonic() - started
    return {"adapter": (wanted, 0.0, 0.0),
            **{name: timed(way, wanted, modules)
               for name, way in (("requantized", requantized), ("rounded", rounded))},
            "codes": ({path: change.change.T for path, change in coded.items()},
                      float(np.mean([change.share for change in coded.values()])), seconds)}


def timed(way, wanted: dict, modules: dict) -> tuple[dict, float, float]:
    """What a way of one weight gives of all, the mean share of changed codes, and seconds."""
    started = time.monotonic()
    found = {path: way(change, modules[path]) for path, change in wanted.items()}
    return ({path: change for path, (change, _) in found.items()},
            float(np.mean([share for _, share in found.values()])), time.monotonic() - started)


def requantized(change: np.ndarray, module) -> tuple[np.ndarray, float]:
    """Scales and codes of W + ΔW anew: what comes out less W, and the share of words changed."""
    options = {"group_size": module.group_size, "bits": module.bits}
    before = np.array(weight(module), np.float64)
    words, scales, biases = mx.quantize(mx.array(before + change, dtype=mx.float32), **options)
    after = np.array(mx.dequantize(words, scales, biases, **options), np.float64)
    return after - before, float(np.mean(np.array(words) != np.array(module.weight)))


def rounded(change: np.ndarray, module) -> tuple[np.ndarray, float]:
    """W + ΔW to the nearest codes on the old scales, and the share of codes changed."""
    scales, codes = scales_of(module), codes_of(module)
    moved = np.clip(np.rint(codes + change / scales), 0, 2**module.bits - 1) - codes
    return moved * scales, float(np.mean(moved != 0))


def summed(results: list[dict]) -> dict:
    """Of every way: means with intervals, and the scores' paired differences to the adapter."""
    ids, out = range(len(results)), {"unedited": {}, "ways": {}}
    names = ("rewrite_success", "paraphrase_success", "neighborhood_success")
    out["unedited"] = {name: float(np.mean([r["unedited"][name] for r in results]))
                       for name in names}
    base = [r["ways"]["adapter"] for r in results]
    for way in WAYS:
        mine = [r["ways"][way] for r in results]
        out["ways"][way] = {
            **{name: {"mean": float(np.mean([one[name] for one in mine])),
                      "ci95": mean_interval([one[name] for one in mine], ids, name in names)}
               for name in (*names, *OWN)},
            "differences": differences(base, mine, metrics.SCORE, ids, ids)}
    return out


def show(summary: dict) -> None:
    print(f"{summary['cases']} cases, layers {summary['layers']}, {summary['bits']} bits in groups "
          f"of {summary['group_size']}; unedited NS "
          f"{summary['unedited']['neighborhood_success']:.1f}\n"
          "way             ES     PS     NS      KL   codes  seconds   less than the adapter's")
    for way, found in summary["ways"].items():
        cells = [f"{found[name]['mean']:6.1f}" for name in
                 ("rewrite_success", "paraphrase_success", "neighborhood_success")]
        apart = [f"{found['differences'][name]['mean']:+.1f}" for name in
                 ("rewrite_success", "paraphrase_success", "neighborhood_success")]
        print(f"{way:<12}{' '.join(cells)}  {found['kl']['mean']:.4f}  "
              f"{found['changed']['mean']:4.1f} %   {found['seconds']['mean']:5.1f}   "
              f"{', '.join(apart)}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="(default: the default model)")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=positive, default=150)
    parser.add_argument("--together", type=positive, default=1, metavar="N")
    parser.add_argument("--group-size", type=positive, default=32)
    parser.add_argument("--moments", metavar="DIR")
    parser.add_argument("--corpus", nargs="+", metavar="FILE")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
