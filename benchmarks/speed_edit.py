"""Seconds a ROME edit beside the authors' way in PyTorch; MEMIT beside ROME.

Eight facts, half with the subject at the beginning of the prompt, half inside, in turn by ours, by
the model's preset and by PyTorch in a process of its own (torch_rome.py), the whole edit each time:
the same templates, moments, steps and layer in the first and the last, the published number of
templates. Beside MEMIT as many ROME edits, each with its own published templates: 20 requests, of
which ROME writes three and the time is scaled (full: 100, and all of them).
"""

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from timing import seconds
from torch_process import served

import rome_mlx as rm
from rome_mlx.editing import value as value_module
from rome_mlx.editing.methods import find_method
from rome_mlx.editing.templates import context_templates, memit_templates
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.tokens import encode
from rome_mlx.models.weights import weight_shape
from rome_mlx.moments.lookup import moment_matrix

LAYER, LAYERS = 5, [4, 5, 6]
BEGINNING = [rm.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
             rm.EditRequest("{} was developed by", "Windows 95", "Nintendo"),
             rm.EditRequest("{} is a city in the country of", "Toronto", "Italy"),
             rm.EditRequest("{} plays the sport of professional", "LeBron James", "football")]
INSIDE = [rm.EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
          rm.EditRequest("The headquarters of {} are in the city of", "Volkswagen", "London"),
          rm.EditRequest("The official language of {} is called", "Austria", "French"),
          rm.EditRequest("In the country of France there is {}, which stands in the city of",
                         "the Louvre", "London")]
FACTS = [*BEGINNING, *INSIDE]


def rows(full: bool, repeats: int) -> list[dict]:
    """The edit and the batch by count: ours and the slow ways."""
    model, tokenizer = rm.load(dtype="float32")
    return [*_edits(model, tokenizer, repeats), _batch(model, tokenizer, full)]


def _edits(model, tokenizer, repeats: int) -> list[dict]:
    """Rows of the published hyperparameters and of the model's preset."""
    templates = context_templates(model, tokenizer)
    moments = {LAYER: moment_matrix(model, tokenizer, LAYER)}
    hp = rm.Hyperparameters(v_stop=0.0)  # all the steps
    decoder, editor = Decoder(model), find_method("rome")
    own = editor.resolve(None, decoder)
    own_templates = editor.kept_templates(model, tokenizer, 0, own)

    def edit(fact, hyperparameters, templates):
        start = time.perf_counter()
        found = rm.rome(model, tokenizer, fact, LAYER, moments=moments, context_templates=templates,
                        hyperparameters=hyperparameters)
        return time.perf_counter() - start, found

    arrays = {"layer": LAYER, "steps": hp.v_num_grad_steps, "rate": hp.v_lr, "kl": hp.kl_factor,
              "decay": hp.v_weight_decay, "clamp": hp.clamp_norm_factor, "moment": moments[LAYER]}
    for i, fact in enumerate(FACTS):
        arrays |= {f"{name}{i}": array
                   for name, array in _prepared(tokenizer, fact, templates).items()}
    times = {name: [[] for _ in FACTS] for name in ("ours", "preset", "torch")}
    cosines, steps = [], []
    with served(Path(__file__).with_name("torch_rome.py"), model, arrays) as torch:
        for turn in range(repeats + 1):  # the first warms up
            for i, fact in enumerate(FACTS):
                took, ours = edit(fact, hp, templates)
                took_own, preset = edit(fact, own, own_templates)
                theirs = torch and torch(i)
                if turn:
                    times["ours"][i].append(took)
                    times["preset"][i].append(took_own)
                    times["torch"][i] += [theirs["seconds"]] if theirs else []
                    steps.append(len(preset.losses))
                    cosines += [_cosine(ours.right_vector, theirs["right"]),
                                _cosine(ours.left_vector, theirs["left"])] if theirs else []
    table = []
    for name, label in (("ours", "rome, published"), ("preset", "rome, preset")):
        used, used_hp = (templates, hp) if name == "ours" else (own_templates, own)
        row = {"name": label, **_against_torch(times[name], times["torch"]),
               "necessary_gflop": np.mean([_necessary_gflop(decoder, tokenizer, used, used_hp, fact)
                                           for fact in FACTS])}
        if name == "ours":
            row["cosine_torch"] = min(cosines, default=None)
        else:
            row["mean_steps"] = float(np.mean(steps))
            row["necessary_gflop"] *= row["mean_steps"] / own.v_num_grad_steps
        theirs = "absent" if row["torch_s"] is None else f"{row['torch_s']:.1f} s"
        print(f"{label}: {row['ours_s']:.2f} s, PyTorch {theirs}", file=sys.stderr)
        table.append(row)
    return table


def _against_torch(ours: list[list[float]], torch: list[list[float]]) -> dict:
    """Means over facts of medians over turns, the ratio of these means, and each fact's ratio."""
    mine = [median(times) for times in ours]
    row = {"ours_s": float(np.mean(mine)), "ours_each_s": mine, "direct_s": None,
           "direct_ratio": None, "torch_s": None, "torch_ratio": None}
    if all(torch):
        theirs = [median(times) for times in torch]
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        row |= {"torch_s": float(np.mean(theirs)), "torch_each_s": theirs,
                "torch_ratio": float(np.mean(theirs) / np.mean(mine)), "torch_each_ratio": ratios,
                "torch_ratio_beginning": median(ratios[:len(BEGINNING)]),
                "torch_ratio_inside": median(ratios[len(BEGINNING):])}
    return row


def _prepared(tokenizer, request, templates) -> dict[str, np.ndarray]:
    """Padded ids with their mask, the subject's and the target's positions; the last row is the
    KL's. Targets have one token."""
    rows = [row for row in value_module._rows(tokenizer, [request], templates) if row.target]
    if any(len(row.target) > 1 for row in rows):
        raise ValueError(f"{request.target_new!r} has several tokens")
    alone = encode(tokenizer, value_module._KL_PROMPT.replace("{}", request.subject))
    subject = alone.range(0, len(request.subject))[1] - 1
    texts = [*(row.ids for row in rows), alone.ids]
    width = max(map(len, texts))
    return {"ids": np.array([[*ids, *[0] * (width - len(ids))] for ids in texts]),
            "mask": np.array([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]),
            "subjects": np.array([*(row.subject for row in rows), subject]),
            "at": np.array([row.begin - 1 for row in rows]),
            "targets": np.array([row.target[0] for row in rows])}


CITIES = ("Rome", "Athens", "Oslo", "Lima", "Cairo", "Tokyo", "Boston", "Dublin", "Vienna", "Delhi")


def _batch(model, tokenizer, full: bool) -> dict:
    count = 100 if full else 20
    requests = [rm.EditRequest(FACTS[0].prompt, f"The {name} {kind}", CITIES[i % len(CITIES)])
                for i, (name, kind) in enumerate(
                    (name, kind) for kind in ("Tower", "Bridge", "Museum", "Palace", "Garden")
                    for name in ("Old", "Royal", "Red", "Northern", "Harbour", "Crystal", "Iron",
                                 "Silver", "King's", "Marble", "Green", "Stone", "Golden", "Little",
                                 "Great", "White", "Lion's", "Glass", "Clock", "River"))][:count]
    moments = {layer: moment_matrix(model, tokenizer, layer) for layer in LAYERS}
    many, one = memit_templates(model, tokenizer), context_templates(model, tokenizer)
    written = requests if full else requests[:3]
    ours_s = seconds(lambda: rm.memit(
        model, tokenizer, requests, LAYERS, moments=moments, context_templates=many,
        hyperparameters={"v_num_grad_steps": 20, "update_weight": 20.0}), 1)
    direct_s = count / len(written) * seconds(lambda: [rm.rome(
        model, tokenizer, request, LAYERS[-1], moments=moments, context_templates=one,
        hyperparameters="published") for request in written], 1)
    decoder, hp = Decoder(model), rm.Hyperparameters()
    print(f"memit: {count} requests {ours_s:.1f} s, by ROME {direct_s:.1f} s", file=sys.stderr)
    return {"name": f"memit {count}", "ours_s": ours_s, "direct_s": direct_s, "torch_s": None,
            "direct_ratio": direct_s / ours_s, "torch_ratio": None, "rome_edits": len(written),
            "necessary_gflop": sum(_necessary_gflop(decoder, tokenizer, many, hp, request)
                                   for request in requests)}


def _necessary_gflop(decoder, tokenizer, templates, hp, request) -> float:
    """Matrix products of the steps, forward and back to δ: each row from the subject's last token
    on, above the layer, and the vocabulary where it is read."""
    rows = value_module._rows(tokenizer, [request], templates)
    numbers = sum(np.prod(weight_shape(m)) for _, m in decoder.layers[0].named_modules()
                  if "weight" in m and m.weight.ndim == 2)
    tokens = sum(len(row.ids) - row.subject for row in rows)
    read = sum(len(row.target) + row.kl for row in rows)
    step = 2 * numbers * (len(decoder.layers) - 1 - LAYER) * tokens \
        + 2 * np.prod(weight_shape(decoder.embedding)) * read
    return 2 * float(step) * hp.v_num_grad_steps / 1e9


def _cosine(one, other) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))
