"""Many facts at once: MEMIT's λ, EMMET's scale, AlphaEdit's energy and λ for the default model.

  python benchmarks/sweep_batch.py --data counterfact.json --output runs/batch

--count cases from --first on are written by one call. The values depend on the layers and not on
what is tried here, so they are found once for each last layer. A file per configuration: ES, PS
and the NS of three neighbors per case, edited and unedited; a run that is stopped goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import rome_mlx as rm  # noqa: E402
from rome_mlx.editing import spread  # noqa: E402
from rome_mlx.editing.methods import METHODS  # noqa: E402
from rome_mlx.editing.templates import memit_templates  # noqa: E402
from rome_mlx.editing.value import Value  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.metrics import GROUPS, case_measures, case_scores  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

LAYERS = [4, 5, 6]
GRID = [
    *(("memit", LAYERS, {"update_weight": weight}) for weight in (20.0, 200.0, 2000.0, 20000.0)),
    *(("emmet", LAYERS[-1:], {"moment_scale": scale, "ridge": 0.1}) for scale in (1.0, 1000.0)),
    *(("alphaedit", LAYERS, {"energy": energy, "regularization": weight})
      for energy in (0.01, 0.02, 0.05) for weight in (10.0, 1.0, 0.1)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="CounterFact records, JSON")
    parser.add_argument("--first", type=int, default=300, help="position of the first case")
    parser.add_argument("--count", type=int, default=50, help="cases written at once")
    parser.add_argument("--only", metavar="JSON",
                        help="these configurations: [[method, layers, {...}], ...]")
    parser.add_argument("--output", required=True, metavar="DIR", help="where it resumes")
    args = parser.parse_args()
    model, tokenizer = rm.load(dtype="float32")
    cases = [dataclasses.replace(case, neighbors=case.neighbors[:3])
             for case in read_counterfact(args.data)[args.first: args.first + args.count]]
    templates = memit_templates(model, tokenizer)
    unedited = [case_scores(model, tokenizer, case) for case in cases]
    run = Run(args.output, {"first": args.first, "count": len(cases)}, Identity.of(model))
    keep_values(Path(args.output))
    for method, layers, changes in json.loads(args.only) if args.only else GRID:
        about = {"method": method, "layers": layers, "changes": changes}
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        print(run.one(Item(f"{method}-{name}", about), lambda about=about: measured(
            model, tokenizer, cases, unedited, templates, **about)), flush=True)


def measured(model, tokenizer, cases, unedited, templates, method: str, layers, changes) -> dict:
    """All cases written by one call, and what became of them."""
    edit = METHODS[method].write(model, tokenizer, [case.request for case in cases], layers,
                                 context_templates=templates, hyperparameters=changes)
    with edit.applied(model):
        edited = [case_scores(model, tokenizer, case) for case in cases]
    return {"edited": means(edited, unedited), "unedited": means(unedited, unedited),
            "norm": edit.norm_change(model), "details": edit.details}


def keep_values(directory: Path) -> None:
    """Let `spread` look values up that it has found before."""
    find = spread.optimize_values

    def optimize_values(decoder, tokenizer, requests, templates, layer, hp, *rest):
        about = [layer, hp.v_num_grad_steps, hp.v_lr, hp.clamp_norm_factor, hp.kl_factor,
                 *(f"{request.text} {request.target_new}" for request in requests)]
        path = directory / f"values-{layer}-{zlib.crc32(json.dumps(about).encode()):08x}.npz"
        if not path.exists():
            values = find(decoder, tokenizer, requests, templates, layer, hp, *rest)
            np.savez(path, delta=[v.delta for v in values], initial=[v.initial for v in values],
                     losses=json.dumps([v.losses for v in values]))
        with np.load(path, allow_pickle=False) as file:
            return [Value(*parts) for parts in zip(file["delta"], file["initial"],
                                                   json.loads(str(file["losses"])), strict=True)]

    spread.optimize_values = optimize_values


def means(scores, unedited) -> dict:
    measures = [case_measures(s, u) for s, u in zip(scores, unedited, strict=True)]
    return {label: float(np.mean([m[f"{group}_success"] for m in measures]))
            for label, group in zip(("ES", "PS", "NS"), GROUPS, strict=True)}


if __name__ == "__main__":
    main()
