"""Is an edit found again? Subject, object and kind of edits of the default model, and false alarms.

  python benchmarks/forensics.py --data counterfact.json --more edits.json --corpus articles.txt \\
      --output runs/forensics --json forensics.json

Each edit is made, looked at with C of another text than the editor's, and taken back. Candidates
are the subjects of the data and names made of their halves, 20,000 in all. `--kinds` chooses among
rome, r-rome, memit-1, memit-10, memit-50, alphaedit-10 and ft; every other edit of a kind has the
published hyperparameters. Then models that hold no edit: trained a little, as a LoRA and whole,
requantized, rounded, merged. A run that is stopped goes on where it was.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten, tree_map  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402
from tqdm import tqdm  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.cli.common import positive, write_json  # noqa: E402
from rome_mlx.editing.layer_choice import layers_to_edit  # noqa: E402
from rome_mlx.editing.methods import find_method  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.forensics.diff import told, verdict  # noqa: E402
from rome_mlx.evaluation.forensics.names import (  # noqa: E402
    CONTEXTS,
    Rows,
    by_length,
    named,
    subject_keys,
)
from rome_mlx.evaluation.forensics.weight_changes import WeightChange, changes, compared  # noqa: E402
from rome_mlx.intervals import mean_interval  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.hooks import find_module  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.models.tokens import encode  # noqa: E402
from rome_mlx.storage.places import read_lines  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

KINDS = ("rome", "r-rome", "memit-1", "memit-10", "memit-50", "alphaedit-10", "ft")
FAMILY = {"rome": "rome", "r-rome": "rome", "memit": "memit", "alphaedit": "memit",
          "ft": "fine-tuned"}  # by method
CANDIDATES, LAYERS = 20_000, range(4, 7)


def main() -> None:
    args = arguments()
    model, tokenizer = rm.load(dtype="float32")
    base, _ = rm.load(dtype="float32")
    cases = read_counterfact(args.data)[args.first:]
    subjects = candidates(args.data, args.more)
    other = Path(args.output) / "moments"
    other.mkdir(parents=True, exist_ok=True)
    seen = rm.second_moments(base, tokenizer, LAYERS, args.corpus, args.tokens, output=other,
                             progress=True)
    finding = Finding(base, model, tokenizer, subjects, {i: seen[i].value() for i in LAYERS})
    groups = [(kind, number, count_of(kind)) for kind in args.kinds for number in range(args.edits)]
    run = Run(Path(args.output) / "edits", {"corpus": args.corpus, "tokens": args.tokens},
              Identity.of(base))
    results = run.map(
        [Item(f"{kind}_{number}", {"kind": kind, "number": number}) for kind, number, _ in groups],
        lambda _, todo: {i: finding.edited(*groups[i], cases) for i in todo}, progress=True,
        unit="edit")
    plain = run_innocent(args, base, tokenizer, finding) if args.innocent else []
    summary = {"candidates": len(subjects), "kinds": summed(results), "innocent": plain}
    show(summary)
    write_json(args.json, summary)


def method_of(kind: str) -> str:
    return kind.rpartition("-")[0] if kind[-1].isdigit() else kind


def count_of(kind: str) -> int:
    return int(kind.rpartition("-")[2]) if kind[-1].isdigit() else 1


def candidates(*files) -> list[str]:
    """Subjects of the files, and as many names made of their first and last words."""
    found = []
    for file in files:
        for one in json.loads(Path(file).read_text("utf-8")):
            found.append(one.get("subject") or one["requested_rewrite"]["subject"])
    found = list(dict.fromkeys(found))
    random, words = np.random.RandomState(0), [one.split() for one in found if " " in one]
    made = dict.fromkeys(found)
    while len(made) < CANDIDATES:
        a, b = (words[i] for i in random.randint(len(words), size=2))
        made[f"{' '.join(a[:-1])} {b[-1]}"] = None
    return list(made)[:CANDIDATES]


class Finding:
    """Edits of `model`, and what is found of them against `base`."""

    def __init__(self, base, model, tokenizer, subjects, moments):
        self.base, self.model, self.tokenizer = base, model, tokenizer
        self.subjects, self.moments = subjects, moments
        self.decoder, self.keys = Decoder(base), {}
        self.down = {self.decoder.path(i, "down"): i for i in self.decoder.dense_layers}

    def edited(self, kind: str, number: int, count: int, cases) -> dict:
        """What is found of one edit. number: every other one has the published numbers."""
        name = method_of(kind)
        method, decoder = find_method(name), Decoder(self.model)
        hp = "published" if number % 2 and name in ("rome", "r-rome", "memit") else None
        some = cases[number * count: (number + 1) * count]
        requests = [case.request for case in some]
        where = layers_to_edit(decoder, method, 5, hp) if name != "memit" else list(LAYERS)
        edit = method.write(self.model, self.tokenizer,
                            requests[0] if method.one_by_one else requests, where,
                            hyperparameters=hp)
        with edit.applied(self.model):
            return {"subjects": [one.subject for one in requests],
                    "objects": [one.target_new for one in requests],
                    **self.found([*edit.deltas], count)}

    def found(self, paths, most: int) -> dict:
        """Verdict, names and objects of the weights at these paths."""
        weights = [one for path in paths if isinstance(
            one := compared(path, *(find_module(m, path) for m in (self.base, self.model))),
            WeightChange)]
        kind, names = verdict(weights, set(self.down)), []
        if kind in ("rome", "memit"):
            rows = [Rows.of(self.down[one.path], one.spectrum.right,
                            self.moments[self.down[one.path]]) for one in weights]
            names = named(self.base, self.tokenizer, rows, self.subjects, most,
                          first=[row.coordinates(self._first(row.layer)) for row in rows])
        facts = [told(self.base, self.model, self.tokenizer, name, 0) for name in names[:10]]
        return {"verdict": kind, "rank": [one.rank for one in weights],
                "names": [name.subject for name in names],
                "scores": [name.score for name in names],
                "chance": names[0].chance if names else None,
                "said": [fact.object for fact in facts]}

    def _first(self, layer: int) -> np.ndarray:
        """(candidates, d_in) float32 keys in the first context, read once."""
        if layer not in self.keys:
            found = np.zeros((len(self.subjects), len(self.moments[layer])), np.float32)
            for some in tqdm(by_length(self.subjects), desc=f"keys of layer {layer}"):
                found[some] = subject_keys(self.decoder, self.tokenizer,
                                           [self.subjects[i] for i in some], CONTEXTS[0], layer)
            self.keys[layer] = found
        return self.keys[layer]


def run_innocent(args, base, tokenizer, finding: Finding) -> list[dict]:
    """Verdicts of models that hold no edit."""
    rows = [encode(tokenizer, text).ids[:64] for text in read_lines("neutral.txt")]
    whole = trained(copy.deepcopy(base), rows, args.steps)
    low = copy.deepcopy(base)
    low.freeze()
    linear_to_lora_layers(low, 8, {"rank": 8, "scale": 20.0, "dropout": 0.0})
    merged = copy.deepcopy(base)
    merged.update(tree_map(lambda a, b: 0.5 * (a + b), base.parameters(), whole.parameters()))
    rounded = copy.deepcopy(base)
    rounded.apply(lambda w: w.astype(mx.bfloat16))
    coarse = copy.deepcopy(base)
    nn.quantize(coarse, group_size=64, bits=4)
    out = []
    for name, model in (("fine-tuned", whole), ("lora", trained(low, rows, args.steps)),
                        ("merged", merged), ("rounded", rounded), ("requantized", coarse)):
        weights = [one for one in changes(base, model) if isinstance(one, WeightChange)]
        out.append({"model": name, "verdict": verdict(weights, set(finding.down))})
    return out


def trained(model, rows, steps: int):
    """A model after so many steps of Adam on texts."""
    optimizer = optim.Adam(learning_rate=1e-4)

    def loss(model, ids):
        logits = model(ids[:, :-1])
        return nn.losses.cross_entropy(logits, ids[:, 1:], reduction="mean")

    step = nn.value_and_grad(model, loss)
    model.train()
    for i in range(steps):
        _, grads = step(model, mx.array([rows[i % len(rows)]]))
        optimizer.update(model, grads)
        mx.eval([value for _, value in tree_flatten(model.parameters())], optimizer.state)
    return model.eval()


def summed(results: list[dict]) -> dict:
    """Of every kind: percent of edits whose kind, and of facts whose subject and object, is found
    (the subject among as many as were written, the object at its own name)."""
    out = {}
    for kind in dict.fromkeys(result["kind"] for result in results):
        some = [result for result in results if result["kind"] == kind]
        facts, objects, groups = [], [], []
        for i, one in enumerate(some):
            for subject, target in zip(one["subjects"], one["objects"], strict=True):
                facts.append(100.0 * (subject in one["names"]))
                groups.append(i)
                if subject in one["names"][:10]:
                    said = one["said"][one["names"].index(subject)]
                    objects.append(100.0 * (bool(said) and target.strip().startswith(said)))
        family = [100.0 * (one["verdict"] == FAMILY[method_of(kind)]) for one in some]
        out[kind] = {
            "edits": len(some), "facts": len(facts),
            "family": [float(np.mean(family)), mean_interval(family, range(len(family)), True)],
            "subject": [float(np.mean(facts)), mean_interval(facts, groups, True)],
            "object": [float(np.mean(objects)), len(objects)] if objects else None,
            "lowest": min((min(one["scores"]) for one in some if one["scores"]), default=None),
            "chance": max((one["chance"] for one in some if one["chance"]), default=None)}
    return out


def show(summary: dict) -> None:
    print(f"{summary['candidates']:,} candidates\n"
          "kind          edits  family  subject              object       lowest, chance")
    for kind, one in summary["kinds"].items():
        share, interval = one["subject"]
        ends = "[none]" if interval is None else f"[{interval[0]:.0f}, {interval[1]:.0f}]"
        said = "" if one["object"] is None else f"{one['object'][0]:.0f} (n {one['object'][1]})"
        scores = "" if one["lowest"] is None else f"{one['lowest']:.2f}, {one['chance']:.2f}"
        print(f"{kind:<13} {one['edits']:>5}  {one['family'][0]:6.0f}  {share:5.1f} {ends:<14} "
              f"{said:<12} {scores}")
    for one in summary["innocent"]:
        print(f"{one['model']:<13} {one['verdict']}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="records that are edited")
    parser.add_argument("--more", required=True, metavar="FILE", help="of which more subjects are")
    parser.add_argument("--corpus", required=True, metavar="FILE", help="that C is counted over")
    parser.add_argument("--tokens", type=positive, default=30_720)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--edits", type=positive, default=30, metavar="N", help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--innocent", action="store_true")
    parser.add_argument("--steps", type=positive, default=30, help="of training")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
