"""Does anything stand out of models that hold no edit, and does an edit after more training?

  python benchmarks/audit.py --edits 5 --json audit.json

A model trained a little, whole and as a LoRA, merged with what it was, rounded and requantized:
the verdict of `rm.diff`, and what `rm.audit` finds loudest, of our own candidates. Then ROME edits
of our own CounterFact records, each trained on as long: is its subject found?
"""

import argparse
import copy
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

import rome_mlx as rm
from rome_mlx.cli.common import positive, write_json
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.models.probabilities import first_choice
from rome_mlx.models.tokens import encode, first_target_id
from rome_mlx.storage.fact_set import read_fact_set
from rome_mlx.storage.places import read_lines

RATES = (1e-5, 1e-4)  # of training


def main() -> None:
    args = arguments()
    base, tokenizer = rm.load(args.model, dtype="float32")
    names = [subject for relation in read_fact_set() for subject, _ in relation.facts]
    names = names[:: max(1, len(names) // args.candidates)]
    out = []
    for deserved, how, model in innocent(base, tokenizer, args.steps):
        loud = loudest(rm.audit((model, tokenizer), names))
        found = rm.diff((base, tokenizer), (model, tokenizer), names)
        out.append({"model": deserved, "how": how, "verdict": found.verdict, **loud,
                    **diffed(found)})
        print(f"{deserved:<12} {how:<24} {list(out[-1].values())[2:]}", flush=True)
    for rate, case in product(RATES, read_counterfact(None)[:args.edits]):
        model, request = copy.deepcopy(base), case.request
        rm.rome(model, tokenizer, request).apply(model)
        model = trained(model, texts(tokenizer), args.steps, rate)
        candidates = [*names, request.subject]
        loud = loudest(rm.audit((model, tokenizer), candidates))
        found = rm.diff((base, tokenizer), (model, tokenizer), candidates)
        says = first_choice(model, tokenizer, request.text) == first_target_id(
            tokenizer, request.text, request.target_new)
        out.append({"model": "edited, then fine-tuned", "rate": rate, "subject": request.subject,
                    "object": request.target_new, "says": says, "verdict": found.verdict, **loud,
                    **diffed(found)})
        print(list(out[-1].values())[1:], flush=True)
    write_json(args.json, out)


def diffed(found) -> dict:
    """Whom a diff names, with what object, and how far the largest singular value of a spread
    change of a down projection is above their median."""
    tops = [one.spectrum.top for one in found.weights if one.kind == "spread" and one.spectrum]
    return {"named": {fact.subject: fact.object for fact in found.facts},
            "stands_out": round(float(max(tops) / np.median(tops)), 1) if tops else None}


def loudest(found) -> dict:
    """The alarms of an audit, and the loudest of the rest with its layer."""
    other = max(found.layers, key=lambda one: one.score)
    return {"alarms": {name: round(score, 1) for one in found.layers
                       for name, score in one.alarms.items()},
            "loudest": round(other.score, 1), "layer": other.layer}


def texts(tokenizer) -> list[list[int]]:
    return [encode(tokenizer, text).ids[:64] for text in read_lines("neutral.txt")]


def innocent(base, tokenizer, steps: int):
    """(the verdict it deserves, how it was made, model), one at a time."""
    rows = texts(tokenizer)
    yield "identical", "", base
    for rate in RATES:
        whole = trained(copy.deepcopy(base), rows, steps, rate)
        yield "fine-tuned", f"rate {rate:g}", whole
    for share in (0.3, 0.7):
        merged = copy.deepcopy(base)
        merged.update(tree_map(lambda a, b, share=share: (1 - share) * a + share * b,
                               base.parameters(), whole.parameters()))
        yield "fine-tuned", f"merged, {share:g} of the last", merged
    for rank in (4, 16):
        low = copy.deepcopy(base)
        low.freeze()
        linear_to_lora_layers(low, 8, {"rank": rank, "scale": 20.0, "dropout": 0.0})
        yield "lora", f"rank {rank}", trained(low, rows, steps)
    for dtype in (mx.bfloat16, mx.float16):
        rounded = copy.deepcopy(base)
        rounded.apply(lambda w, dtype=dtype: w.astype(dtype).astype(mx.float32))
        yield "rounded", str(dtype).removeprefix("mlx.core."), rounded
    for bits, group in ((4, 32), (4, 64), (8, 64)):
        coarse = copy.deepcopy(base)
        nn.quantize(coarse, group_size=group, bits=bits)
        yield "requantized", f"{bits} bits by {group}", coarse


def trained(model, rows, steps: int, rate: float = RATES[-1]):
    """A model after so many steps of Adam on texts."""
    optimizer = optim.Adam(learning_rate=rate)

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


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="PATH|REPO")
    parser.add_argument("--candidates", type=positive, default=1000, metavar="N")
    parser.add_argument("--edits", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=positive, default=30, help="of training")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
