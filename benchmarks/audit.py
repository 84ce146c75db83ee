"""Does anything stand out of models that hold no edit, and does an edit after more training?

  python benchmarks/audit.py --edits 5 --json audit.json

The default model trained a little, whole and as a LoRA, merged with what it was, rounded and
requantized: the verdict of `rm.diff`, and what `rm.audit` finds loudest, of our own candidates.
Then ROME edits of our own CounterFact records, each trained on as long: is its subject found?
"""

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

import rome_mlx as rm
from rome_mlx.cli.common import positive, write_json
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.models.tokens import encode
from rome_mlx.storage.fact_set import read_fact_set
from rome_mlx.storage.places import read_lines


def main() -> None:
    args = arguments()
    base, tokenizer = rm.load(dtype="float32")
    names = [subject for relation in read_fact_set() for subject, _ in relation.facts]
    names = names[:: max(1, len(names) // args.candidates)]
    out = []
    for name, model in innocent(base, tokenizer, args.steps):
        loud = loudest(rm.audit((model, tokenizer), names))
        out.append({"model": name, **loud,
                    "verdict": rm.diff((base, tokenizer), (model, tokenizer), names).verdict})
        print(f"{name:<12} {out[-1]['verdict']:<12} {loud}", flush=True)
    for case in read_counterfact(None)[:args.edits]:
        model = copy.deepcopy(base)
        rm.rome(model, tokenizer, case.request).apply(model)
        model = trained(model, texts(tokenizer), args.steps)
        loud = loudest(rm.audit((model, tokenizer), [*names, case.request.subject]))
        out.append({"model": "edited, then fine-tuned", "subject": case.request.subject, **loud})
        print(f"{case.request.subject}, then fine-tuned: {loud}", flush=True)
    write_json(args.json, out)


def loudest(found) -> dict:
    """The alarms of an audit, and the loudest of the rest with its layer."""
    other = max(found.layers, key=lambda one: one.score)
    return {"alarms": {name: round(score, 1) for one in found.layers
                       for name, score in one.alarms.items()},
            "loudest": round(other.score, 1), "layer": other.layer}


def texts(tokenizer) -> list[list[int]]:
    return [encode(tokenizer, text).ids[:64] for text in read_lines("neutral.txt")]


def innocent(base, tokenizer, steps: int):
    """(name, model), one at a time."""
    rows = texts(tokenizer)
    yield "unedited", base
    whole = trained(copy.deepcopy(base), rows, steps)
    yield "fine-tuned", whole
    merged = copy.deepcopy(base)
    merged.update(tree_map(lambda a, b: 0.5 * (a + b), base.parameters(), whole.parameters()))
    yield "merged", merged
    low = copy.deepcopy(base)
    low.freeze()
    linear_to_lora_layers(low, 8, {"rank": 8, "scale": 20.0, "dropout": 0.0})
    yield "lora", trained(low, rows, steps)
    rounded = copy.deepcopy(base)
    rounded.apply(lambda w: w.astype(mx.bfloat16).astype(mx.float32))
    yield "rounded", rounded
    coarse = copy.deepcopy(base)
    nn.quantize(coarse, group_size=64, bits=4)
    yield "requantized", coarse


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


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=positive, default=1000, metavar="N")
    parser.add_argument("--edits", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=positive, default=30, help="of training")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
