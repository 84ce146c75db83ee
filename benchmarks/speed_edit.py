"""Seconds a ROME edit, 11 templates and 20 steps, the mean of three facts; MEMIT beside ROME.

Beside the edit the plain way of finding the value: the whole model on the whole prompts at every
step, in MLX with the same BLAS and, where it is installed, in PyTorch with transformers. Beside
MEMIT as many ROME edits, each method with its own published number of templates: 20 requests, of
which ROME writes three and the time is scaled (full: 100, and all of them).
"""

import sys

import numpy as np
from timing import mx, seconds
from torch_process import in_torch

import rome_mlx as rm
from rome_mlx.editing import value as value_module
from rome_mlx.editing.methods import rome as rome_module
from rome_mlx.editing.templates import context_templates, memit_templates
from rome_mlx.editing.value import Value, optimize_values
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.hooks import hooked
from rome_mlx.models.weights import weight_shape
from rome_mlx.moments.lookup import moment_matrix

LAYER, LENGTHS, LAYERS = 8, ((5, 5), (5, 10)), [4, 5, 6]
REQUESTS = [rm.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
            rm.EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
            rm.EditRequest("{} was developed by", "Windows 95", "Nintendo")]

#: the authors' way: the whole model on the whole prompts at every step; one token a target
TORCH = """
import sys, time
import numpy as np, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
model.requires_grad_(False)
given = dict(np.load(sys.argv[2]))
layer, steps = int(given["layer"]), int(given["steps"])
rate, kl_factor, decay, clamp = (float(given[n]) for n in ("rate", "kl", "decay", "clamp"))
def optimize(ids, subjects, at, targets):
    row, count, seen = torch.arange(len(ids)), len(targets), {}
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    def add(module, inputs, out):
        seen.setdefault("scale", out[0, subjects[0]].detach().norm())
        out = out.clone()
        out[row, subjects] += delta
        return out
    handle = model.model.layers[layer].mlp.register_forward_hook(add)
    optimizer, before = torch.optim.Adam([delta], lr=rate), None
    for i in range(steps):
        out = torch.log_softmax(model(input_ids=ids, use_cache=False).logits, dim=-1)
        kl = out[count, subjects[count]]
        before = kl.detach() if before is None else before
        loss = -out[row[:count], at, targets].mean() + kl_factor * (kl.exp() * (kl - before)).sum()
        loss = loss + (decay * delta.norm() / seen["scale"]**2 if i else 0.0)
        if i == steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta *= min(1.0, float(clamp * seen["scale"] / delta.norm()))
    handle.remove()
    return delta.detach().double().numpy()
def everything():
    return [optimize(*(torch.tensor(given[f"{name}{i}"])
                       for name in ("ids", "subjects", "at", "targets")))
            for i in range(sum(name.startswith("ids") for name in given))]
times = []
for _ in range(3):
    start = time.perf_counter()
    deltas = everything()
    times.append(time.perf_counter() - start)
np.savez(sys.argv[3], seconds=sorted(times)[1] / len(deltas), deltas=np.stack(deltas))
"""

CITIES = ("Rome", "Athens", "Oslo", "Lima", "Cairo", "Tokyo", "Boston", "Dublin", "Vienna", "Delhi")


def rows(full: bool, repeats: int) -> list[dict]:
    """The edit by value and the batch by count: ours, the direct way and PyTorch's."""
    model, tokenizer = rm.load(dtype="float32")
    return [_edit(model, tokenizer, repeats), _batch(model, tokenizer, full)]


def _edit(model, tokenizer, repeats: int) -> dict:
    templates = context_templates(model, tokenizer, lengths=LENGTHS)
    moments = {LAYER: moment_matrix(model, tokenizer, LAYER)}
    hp = rm.Hyperparameters(v_stop=0.0)  # all the steps
    found, count = {}, len(REQUESTS)

    def edit(name):
        found[name] = np.stack([
            rm.rome(model, tokenizer, request, LAYER, moments=moments,
                    context_templates=templates, hyperparameters=hp).right_vector
            for request in REQUESTS])

    ours_s = seconds(lambda: edit("ours"), repeats) / count
    rome_module.optimize_values = _plain
    try:
        direct_s = seconds(lambda: edit("direct"), 3) / count
    finally:
        rome_module.optimize_values = optimize_values
    torch_s, deltas = _in_torch(model, tokenizer, templates, hp)
    ours = np.stack([optimize_values(Decoder(model), tokenizer, [request], templates, LAYER,
                                     hp)[0].delta for request in REQUESTS])
    row = {"name": "rome", "ours_s": ours_s, "direct_s": direct_s, "torch_s": torch_s,
           "direct_ratio": direct_s / ours_s, "torch_ratio": torch_s and torch_s / ours_s,
           "necessary_gflop": np.mean([_necessary_gflop(Decoder(model), tokenizer, templates, hp, r)
                                       for r in REQUESTS]),
           "cosine_direct": _cosine(found["ours"], found["direct"]),
           "cosine_torch": None if deltas is None else _cosine(ours, deltas)}
    theirs = "absent" if torch_s is None else f"{torch_s:.1f} s"
    print(f"rome: {ours_s:.1f} s, direct {direct_s:.1f} s, PyTorch {theirs}", file=sys.stderr)
    return row


def _batch(model, tokenizer, full: bool) -> dict:
    count = 100 if full else 20
    requests = [rm.EditRequest(REQUESTS[0].prompt, f"The {name} {kind}", CITIES[i % len(CITIES)])
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


def _prepared(tokenizer, request, templates):
    """Padded ids, the subject's and the targets' positions, the targets; the KL's row is last."""
    rows = [row for row in value_module._rows(tokenizer, [request], templates) if row.target]
    ends = tokenizer.encode(request.subject)
    last = tokenizer.encode(value_module._KL_PROMPT.replace("{}", request.subject))
    texts = [*(row.ids for row in rows), last]
    width = max(len(ids) for ids in texts)
    ids = np.array([ids + [0] * (width - len(ids)) for ids in texts])
    at = np.array([row.begin - 1 for row in rows])  # one token a target
    return ids, np.array([*(row.subject for row in rows), len(ends) - 1]), at, np.array(
        [row.target[0] for row in rows])


def _plain(decoder, tokenizer, requests, templates, layer, hp, part="mlp", report=None):
    """`optimize_values` for one request: every step runs the whole model on whole prompts."""
    ids, subjects, at, targets = (mx.array(x) for x in _prepared(tokenizer, requests[0],
                                                                     templates))
    row, count, seen = mx.arange(len(ids)), len(targets), {}
    place = (mx.arange(ids.shape[1])[None] == subjects[:, None])[..., None]

    def logits(delta):
        def add(out):
            seen["initial"] = out[0, subjects[0]]
            return out + place * delta

        with hooked(decoder.module(layer, part), after=add):
            return decoder.model(ids)

    log_p = _mlx_log_softmax(logits(mx.zeros(decoder.dim))[count, subjects[count]])
    initial, delta = seen["initial"], mx.zeros(decoder.dim)
    scale, optimizer, losses = mx.linalg.norm(initial), value_module._adam(hp.v_lr), []
    mx.eval(log_p, initial, scale)

    def loss(delta):
        out = logits(delta)
        new = _mlx_log_softmax(out[row[:count], at])
        kl = _mlx_log_softmax(out[count, subjects[count]])
        return (-new[row[:count], targets].mean()
                + hp.kl_factor * (mx.exp(kl) * (kl - log_p)).sum()
                + hp.v_weight_decay * mx.sqrt(mx.maximum((delta * delta).sum(), 1e-30)) / scale**2)

    for i in range(hp.v_num_grad_steps - 1):
        total, gradient = mx.value_and_grad(loss)(delta)
        mx.eval(total, gradient)
        losses.append({"step": i, "total": total.item()})
        delta = optimizer.apply_gradients({"delta": gradient}, {"delta": delta})["delta"]
        delta = delta * mx.minimum(1, hp.clamp_norm_factor * scale / mx.linalg.norm(delta))
    losses.append({"step": hp.v_num_grad_steps - 1, "total": loss(delta).item()})
    return [Value(np.array(delta, np.float64), np.array(initial, np.float64), losses)]


def _mlx_log_softmax(x):
    return x - mx.logsumexp(x, axis=-1, keepdims=True)


def _in_torch(model, tokenizer, templates, hp) -> tuple[float | None, np.ndarray | None]:
    """(seconds a value's optimisation, δ of every request); None where PyTorch is absent."""
    arrays = {"layer": LAYER, "steps": hp.v_num_grad_steps, "rate": hp.v_lr, "kl": hp.kl_factor,
              "decay": hp.v_weight_decay, "clamp": hp.clamp_norm_factor}
    for i, request in enumerate(REQUESTS):
        arrays |= {f"{name}{i}": array for name, array in zip(
            ("ids", "subjects", "at", "targets"), _prepared(tokenizer, request, templates),
            strict=True)}
    found = in_torch(TORCH, model, arrays)
    return (None, None) if found is None else (float(found["seconds"]), found["deltas"])


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
    """The lowest over rows."""
    return float(min((one * other).sum(1) / np.linalg.norm(one, axis=1)
                     / np.linalg.norm(other, axis=1)))
