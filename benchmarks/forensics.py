"""Is an edit found again? Subject, object and kind of edits, and false alarms.

  python benchmarks/forensics.py --data counterfact.json --more edits.json --corpus articles.txt \\
      --output runs/forensics --json forensics.json

Each edit is made, looked at with C of another text than the editor's, audited without the base at
its first layer, and taken back. Candidates are the subjects of the data and names made of their
halves, 20,000 in all. `--kinds` chooses among rome, rome-4bit (the weight quantized afterwards),
r-rome, memit-1, memit-10, memit-50, alphaedit-10 and ft; every other edit of a kind has the
published hyperparameters. A run that is stopped goes on where it was. Models that hold no edit:
benchmarks/audit.py.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.cli.common import positive, write_json  # noqa: E402
from rome_mlx.editing.key import Places, keys_by_layer  # noqa: E402
from rome_mlx.editing.methods import find_method  # noqa: E402
from rome_mlx.evaluation.counterfact import read_counterfact  # noqa: E402
from rome_mlx.evaluation.forensics.audit import LOUD  # noqa: E402
from rome_mlx.evaluation.forensics.diff import verdict  # noqa: E402
from rome_mlx.evaluation.forensics.growing import grown  # noqa: E402
from rome_mlx.evaluation.forensics.loudness import loudest, whitened  # noqa: E402
from rome_mlx.evaluation.forensics.names import (  # noqa: E402
    CONTEXTS,
    Rows,
    by_length,
    named,
    subject_keys,
)
from rome_mlx.evaluation.forensics.statements import next_words, prompts_on, told  # noqa: E402
from rome_mlx.evaluation.forensics.vocabulary import Vocabulary  # noqa: E402
from rome_mlx.evaluation.forensics.weight_changes import (  # noqa: E402
    WeightChange,
    compared,
    effective,
)
from rome_mlx.evaluation.side_effects import neutral_tokens  # noqa: E402
from rome_mlx.intervals import mean_interval  # noqa: E402
from rome_mlx.models.decoder import Decoder  # noqa: E402
from rome_mlx.models.hooks import find_module  # noqa: E402
from rome_mlx.models.identity import Identity  # noqa: E402
from rome_mlx.models.probabilities import first_choice  # noqa: E402
from rome_mlx.models.tokens import first_target_id  # noqa: E402
from rome_mlx.storage.run_store import Item, Run  # noqa: E402

KINDS = ("rome", "rome-4bit", "r-rome", "memit-1", "memit-10", "memit-50", "alphaedit-10", "ft")
FAMILY = {"rome": "rome", "r-rome": "rome", "memit": "memit", "alphaedit": "memit",
          "ft": "fine-tuned"}  # by method
CANDIDATES = 20_000


def main() -> None:
    args = arguments()
    model, tokenizer = rm.load(args.model, dtype="float32")
    base, _ = rm.load(args.model, dtype="float32")
    layers = range(args.layer - 1, args.layer + 2)
    cases = read_counterfact(args.data)[args.first:]
    subjects = candidates(args.data, args.more)
    other = Path(args.output) / "moments"
    other.mkdir(parents=True, exist_ok=True)
    seen = rm.second_moments(base, tokenizer, layers, args.corpus, args.tokens, output=other,
                             progress=True)
    finding = Finding(base, model, tokenizer, subjects, {i: seen[i].value() for i in layers},
                      args.moments, Path(args.output), args.grow)
    groups = [(kind, number, count_of(kind)) for kind in args.kinds for number in range(args.edits)]
    run = Run(Path(args.output) / "edits", {"corpus": args.corpus, "tokens": args.tokens},
              Identity.of(base))
    results = run.map(
        [Item(f"{kind}_{number}", {"kind": kind, "number": number}) for kind, number, _ in groups],
        lambda _, todo: {i: finding.edited(*groups[i], cases) for i in todo}, progress=True,
        unit="edit")
    summary = {"candidates": len(subjects), "kinds": summed(results)}
    show(summary)
    write_json(args.json, summary)


def method_of(kind: str) -> str:
    kind = kind.removesuffix("-4bit")
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

    def __init__(self, base, model, tokenizer, subjects, moments, given, directory, grow):
        self.directory, self.grow = directory, grow
        self.base, self.model, self.tokenizer, self.given = base, model, tokenizer, given
        self.subjects, self.moments = subjects, moments
        self.decoder, self.keys, self.directions = Decoder(base), {}, {}
        self.down = self.decoder.down_paths

    def edited(self, kind: str, number: int, count: int, cases) -> dict:
        """What is found of one edit. number: every other one has the published numbers."""
        name = method_of(kind)
        method = find_method(name)
        hp = "published" if number % 2 and name in ("rome", "r-rome", "memit") else None
        requests = [case.request for case in cases[number * count: (number + 1) * count]]
        layers = sorted(self.moments)
        where = layers[1] if name in ("rome", "r-rome", "ft") else layers
        options = {"moments": self.given} if method.needs_moments else {}
        templates = method.kept_templates(self.model, self.tokenizer, 0,
                                          method.resolve(hp, Decoder(self.model)))
        edit = method.write(self.model, self.tokenizer,
                            requests[0] if method.one_by_one else requests, where,
                            hyperparameters=hp, context_templates=templates, **options)
        with edit.applied(self.model), \
                coarse(self.model, edit.deltas if kind.endswith("4bit") else ()):
            return {"subjects": [one.subject for one in requests],
                    "objects": [one.target_new for one in requests],
                    "took": [self.says(one) for one in requests],
                    **self.found([*edit.deltas], count), **self.audited(min(edit.deltas), count)}

    def says(self, request) -> bool:
        """Whether the edited model's first choice at a fact's own prompt is the new object."""
        wanted = first_target_id(self.tokenizer, request.text, request.target_new)
        return first_choice(self.model, self.tokenizer, request.text) == wanted

    def found(self, paths, most: int) -> dict:
        """Verdict, names and objects of the weights at these paths."""
        weights = [one for path in paths if isinstance(
            one := compared(path, *(find_module(m, path) for m in (self.base, self.model))),
            WeightChange)]
        kind, names, made = verdict(weights, set(self.down)), [], [] if self.grow else None
        if kind in ("rome", "memit"):
            rows = [Rows.of(self.down[one.path], one.spectrum.right,
                            self.moments[self.down[one.path]]) for one in weights]
            names = named(self.base, self.tokenizer, rows, self.subjects, most,
                          first=[row.coordinates(self._first(row.layer)) for row in rows])
            if self.grow:
                made = grown(Vocabulary(self.base, self.tokenizer, rows), rows, most)
        facts = [told(next_words(self.base, self.tokenizer, prompts_on(name.subject)), self.model,
                      self.tokenizer, name, 0) for name in names[:10]]
        return {"verdict": kind, "rank": [one.rank for one in weights],
                "names": [name.subject for name in names],
                "scores": [name.score for name in names],
                "chance": names[0].chance if names else None,
                "said": [fact.object for fact in facts],
                "grown": made and [some[:10] for some in made]}

    def audited(self, path: str, most: int) -> dict:
        """Who is answered too loudly by the first weight that was edited: what comes before it,
        and so every key, is as it was."""
        layer = self.down.get(path)
        if layer is None:
            return {}
        if layer not in self.directions:
            self.directions[layer] = whitened(self._first(layer), *self._neutral(layer))
        alarms, other = loudest(effective(find_module(self.model, path)), self.directions[layer],
                                LOUD, most)
        return {"audit": [self.subjects[one.candidate] for one in alarms],
                "audit_scores": [one.score for one in alarms], "audit_other": other.score}

    def _neutral(self, layer: int) -> tuple[np.ndarray, int]:
        """C of the neutral text at a layer, and its tokens."""
        places = [Places.everywhere(ids) for ids in neutral_tokens(self.base, self.tokenizer)]
        (_, keys), = keys_by_layer(self.decoder, places, [layer])
        seen = np.concatenate(keys)
        return seen.T @ seen / len(seen), len(seen)

    def _first(self, layer: int) -> np.ndarray:
        """(candidates, d_in) float32 keys in the first context, read once and kept in a file."""
        file = self.directory / f"keys-{layer}.npy"
        if layer not in self.keys and file.exists():
            self.keys[layer] = np.load(file)
        if layer not in self.keys:
            found = np.zeros((len(self.subjects), len(self.moments[layer])), np.float32)
            for some in tqdm(by_length(self.subjects), desc=f"keys of layer {layer}"):
                found[some] = subject_keys(self.decoder, self.tokenizer,
                                           [self.subjects[i] for i in some], CONTEXTS[0], layer)
            self.keys[layer] = found
            np.save(file, found)
        return self.keys[layer]


@contextmanager
def coarse(model, paths):
    """The model with these modules in 4 bits."""
    old = {path: find_module(model, path) for path in paths}
    put(model, {path: nn.QuantizedLinear.from_linear(one, 64, 4) for path, one in old.items()})
    try:
        yield
    finally:
        put(model, old)


def put(model, modules: dict) -> None:
    for path, module in modules.items():
        above, _, name = path.rpartition(".")
        setattr(find_module(model, above), name, module)


def summed(results: list[dict]) -> dict:
    """Of every kind: percent of edits whose kind, and of facts whose subject and object, is found
    (the subject among as many as were written; the object, its first word, of those named whose
    object the model says at the fact's own prompt)."""
    out = {}
    for kind in dict.fromkeys(result["kind"] for result in results):
        some = [result for result in results if result["kind"] == kind]
        facts, objects, groups = [], [], []
        for i, one in enumerate(some):
            for subject, target, took in zip(one["subjects"], one["objects"], one["took"],
                                             strict=True):
                facts.append(100.0 * (subject in one["names"]))
                groups.append(i)
                if took and subject in one["names"][:10]:
                    said = one["said"][one["names"].index(subject)]
                    objects.append(100.0 * (said == target.split()[0]))
        audit = [100.0 * (subject in one.get("audit", ())) for one in some
                 for subject in one["subjects"]]
        family = [100.0 * (one["verdict"] == FAMILY[method_of(kind)]) for one in some]
        out[kind] = {
            "edits": len(some), "facts": len(facts),
            "family": [float(np.mean(family)), mean_interval(family, range(len(family)), True)],
            "subject": [float(np.mean(facts)), mean_interval(facts, groups, True)],
            "took": float(np.mean([100.0 * took for one in some for took in one["took"]])),
            "object": [float(np.mean(objects)), len(objects)] if objects else None,
            "audit": [float(np.mean(audit)), mean_interval(audit, groups, True)],
            "grown": grown_shares(some),
            "audit_wrong": sum(len(set(one.get("audit", ())) - set(one["subjects"]))
                               for one in some),
            "audit_loudest_other": max(one.get("audit_other", 0) for one in some),
            "lowest": min((min(one["scores"]) for one in some if one["scores"]), default=None),
            "chance": max((one["chance"] for one in some if one["chance"]), default=None)}
    return out


def grown_shares(some: list[dict]) -> dict | None:
    """Of facts whose subjects were grown without a list, percent found exactly, and with the last
    word right: the best name of each, and any of its ten best."""
    found = [(subject, one["grown"]) for one in some if one.get("grown") is not None
             for subject in one["subjects"]]
    if not found:
        return None
    out = {"facts": len(found)}
    for what, part in (("exact", str), ("last_word", last_word)):
        for which, count in (("best", 1), ("ten", 10)):
            right = [100.0 * any(part(name) == part(subject) for names in made
                                 for name, _ in names[:count]) for subject, made in found]
            out[f"{what}_{which}"] = [float(np.mean(right)),
                                      mean_interval(right, range(len(right)), True)]
    return out


def last_word(name: str) -> str:
    return name.split()[-1]


def ends_of(interval) -> str:
    return "[none]" if interval is None else f"[{interval[0]:.0f}, {interval[1]:.0f}]"


def show(summary: dict) -> None:
    print(f"{summary['candidates']:,} candidates\n"
          "kind          edits  family  subject        took  object    lowest, chance  audit "
          "         wrong, loudest other")
    for kind, one in summary["kinds"].items():
        share, interval = one["subject"]
        ends, audit = ends_of(interval), one["audit"]
        said = "" if one["object"] is None else f"{one['object'][0]:.0f} (n {one['object'][1]})"
        scores = "" if one["lowest"] is None else f"{one['lowest']:.2f}, {one['chance']:.2f}"
        print(f"{kind:<13} {one['edits']:>5}  {one['family'][0]:6.0f}  {share:3.0f} {ends:<10} "
              f"{one['took']:4.0f}  {said:<9} {scores:<15} {audit[0]:3.0f} {ends_of(audit[1]):<10} "
              f"{one['audit_wrong']}, {one['audit_loudest_other']:.1f}")
        if made := one["grown"]:
            print(f"  grown without a list, of {made['facts']}: " + ", ".join(
                f"{name.replace('_', ' ')} {share[0]:.0f} {ends_of(share[1])}"
                for name, share in made.items() if name != "facts"))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="records that are edited")
    parser.add_argument("--more", required=True, metavar="FILE", help="of which more subjects are")
    parser.add_argument("--corpus", required=True, metavar="FILE", help="that C is counted over")
    parser.add_argument("--tokens", type=positive, default=30_720)
    parser.add_argument("--model", metavar="PATH|REPO")
    parser.add_argument("--layer", type=positive, default=5,
                        help="to edit, by MEMIT and AlphaEdit with those beside it")
    parser.add_argument("--moments", metavar="DIR", help="that the edits are made with")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--edits", type=positive, default=30, metavar="N", help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--grow", action="store_true", help="subjects without a list too")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
