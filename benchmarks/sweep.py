"""Find ROME's hyperparameters for the default model: a coarse grid, and its best three.

  python benchmarks/sweep.py --data counterfact.json --output runs/sweep

Every configuration is tried on the first 30 cases, the best three on all of them. One file per
configuration and case, so that a run that is stopped goes on where it was. On few cases successes
are coarse: configurations are ranked by S with every success replaced by the logistic of its
margin in nats, and shown with S itself.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import hmean

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import rome_mlx as rm  # noqa: E402
from rome_mlx.editing.methods.rome import Hyperparameters  # noqa: E402
from rome_mlx.editing.templates import context_templates  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.metrics import GROUPS, case_measures, case_scores  # noqa: E402
from rome_mlx.evaluation.summary import ceiling_share, summarize  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.moments.lookup import moment_matrix  # noqa: E402
from rome_mlx.moments.store import layer_path  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

#: lengths of the context templates: (how many, of how many tokens)
FEW, SHORT, LONG = [[1, 10], [2, 20]], [[2, 5], [3, 10]], [[2, 10], [3, 20]]
#: what a configuration changes, from the published hyperparameters with 4 templates at layer 5
CENTRE = {"lengths": FEW, "layer": 5, "clamp_norm_factor": 2.0}
GRID = [
    *({"layer": layer, "clamp_norm_factor": clamp}
      for layer in (4, 5, 6, 8) for clamp in (1.5, 2.0, 4.0)),
    {"lengths": SHORT}, {"lengths": LONG},
    {"v_lr": 0.2}, {"v_lr": 0.2, "v_num_grad_steps": 40},
    {"v_weight_decay": 0.05}, {"kl_factor": 0.0}, {"ridge": 1e-2},
]
ROUNDS = ((30, None), (None, 3))  # (cases, configurations)


def main() -> None:
    args = arguments()
    model, tokenizer = rm.load(dtype="float32")
    cases = read_counterfact(args.data)[args.first: args.first + args.count]
    bench = Bench(model, tokenizer, args.moments, args.output)
    left = [json.dumps({**CENTRE, **change}, sort_keys=True) for change in GRID]
    print(" smooth  share     ES     PS     NS  unedited NS, cases, configuration")
    for count, keep in ROUNDS:
        some, left = cases[:count], left[:keep]
        for case in some:  # case by case, so that a stopped round still compares
            for name in left:
                bench.measure(name, case)
        rows = {name: bench.summary(name, [case.case_id for case in some]) for name in left}
        left = sorted(rows, key=lambda name: -rows[name]["smooth"])
        show({name: rows[name] for name in left}, len(some))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="CounterFact records, JSON")
    parser.add_argument("--first", type=int, default=300, help="position of the first case")
    parser.add_argument("--count", type=int, default=100, help="cases of the last round")
    parser.add_argument("--moments", metavar="DIR", help="moments of layers that none came for")
    parser.add_argument("--output", required=True, metavar="DIR", help="where it resumes")
    return parser.parse_args()


class Bench:
    """Measures a configuration on a case, once."""

    def __init__(self, model, tokenizer, moments, output):
        self.model, self.tokenizer = model, tokenizer
        self.moments, self.run = moments, Run(output, {}, Identity.of(model))
        self.matrices, self.templates, self.scores = {}, {}, {}

    def measure(self, name: str, case) -> None:
        for one, compute in (("unedited", self._unedited), (name, self._edited)):
            if (one, case.case_id) in self.scores:
                continue
            file = f"case_{case.case_id}-{hashlib.sha256(one.encode()).hexdigest()[:12]}"
            item = Item(file, {"configuration": one, "case": case.case_id})
            found = self.run.one(item, lambda compute=compute, one=one: compute(one, case))
            self.scores[one, case.case_id] = found["scores"]

    def _unedited(self, name: str, case) -> dict:
        return {"scores": case_scores(self.model, self.tokenizer, case)}

    def _edited(self, name: str, case) -> dict:
        configuration = json.loads(name)
        lengths = configuration.pop("lengths")
        hp = Hyperparameters(**configuration, context_lengths=lengths)
        started = time.monotonic()
        edit = rm.rome(self.model, self.tokenizer, case.request, moments=self._matrix(hp.layer),
                       context_templates=self._templates(hp.context_lengths), hyperparameters=hp)
        seconds = time.monotonic() - started
        with edit.applied(self.model):
            return {"seconds": seconds,
                    "scores": case_scores(self.model, self.tokenizer, case)}

    def _matrix(self, layer: int) -> dict:
        if layer not in self.matrices:
            given = self.moments and layer_path(self.moments, layer).exists()
            self.matrices[layer] = moment_matrix(self.model, self.tokenizer, layer,
                                                 self.moments if given else None)
        return self.matrices

    def _templates(self, lengths) -> list[str]:
        key = json.dumps(lengths)
        if key not in self.templates:
            self.templates[key] = context_templates(self.model, self.tokenizer, lengths=lengths)
        return self.templates[key]

    def summary(self, name: str, cases: list[int]) -> dict:
        """Means over the cases, in percent, and the share of the ceiling."""
        before = [self.scores["unedited", c] for c in cases]
        edited = summarize([case_measures(self.scores[name, c], b)
                            for c, b in zip(cases, before, strict=True)])
        unedited = summarize([case_measures(b, b) for b in before])
        smooth = [np.mean([_smooth(self.scores[name, c][group], group) for c in cases])
                  for group in GROUPS]
        return {"smooth": 100 * float(hmean(smooth)), "share": ceiling_share(edited, unedited),
                **{label: edited[f"{group}_success"]["mean"]
                   for label, group in zip(("ES", "PS", "NS"), GROUPS, strict=True)},
                "unedited NS": unedited["neighborhood_success"]["mean"]}


def _smooth(prompts: list[dict], group: str) -> float:
    margins = np.array([p["target_true"] - p["target_new"] for p in prompts])
    return float(np.mean(expit(-margins if group == "neighborhood" else margins)))


def show(rows: dict[str, dict], count: int) -> None:
    for name, row in rows.items():
        print(" ".join(f"{value:6.1f}" for value in row.values()), count, name)
    print(flush=True)


if __name__ == "__main__":
    main()
