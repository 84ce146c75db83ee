"""Seconds to count E[k kᵀ] of two layers over 30,720 tokens of text, in rows of 256.

Beside it the plain way, a full run of the model with the down projections' inputs captured and
summed in float64: in MLX with the same BLAS, and in PyTorch, with forward pre-hooks on the
transformers model of the same weights. Text: ROME_MLX_TEXT, a .txt file.
"""

import os
import sys

import numpy as np
from timing import mx, rm, seconds
from torch_process import in_torch

from rome_mlx.models.decoder import Decoder
from rome_mlx.models.hooks import intercept
from rome_mlx.models.weights import weight_shape
from rome_mlx.moments import corpus

LAYERS, LENGTH, ROWS, BATCH = (8, 12), 256, 120, 8

#: the authors' way: hooks on a full forward pass, sums in float64
TORCH = """
import sys, time
import numpy as np, torch
from transformers import AutoModelForCausalLM
torch.set_grad_enabled(False)
given = np.load(sys.argv[2])
torch.set_default_device(str(given["device"]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
model.to(str(given["device"]))
ids, layers = torch.tensor(given["ids"]), given["layers"].tolist()
sums = {layer: 0 for layer in layers}
def hook(layer):
    def add(module, inputs):
        keys = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        sums[layer] = sums[layer] + keys.T @ keys
    return add
for layer in layers:
    model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(hook(layer))
start = time.perf_counter()
for i in range(0, len(ids), 8):
    model(ids[i: i + 8], use_cache=False)
means = {str(layer): (total / ids.numel()).cpu().numpy() for layer, total in sums.items()}
seconds = time.perf_counter() - start
np.savez(sys.argv[3], seconds=seconds, **means)
"""


def rows(full: bool, repeats: int) -> list[dict]:
    """One row. Without `full`, the direct way over a quarter of the rows, scaled."""
    model, tokenizer = rm.load(dtype="float32")
    text = os.environ.get("ROME_MLX_TEXT")
    if text is None:
        print("moments are left out; say which text to count: ROME_MLX_TEXT=articles.txt",
              file=sys.stderr)
        return []
    ids = [row for _, row in zip(range(ROWS), corpus.rows(model, tokenizer, text, LENGTH),
                                 strict=False)]
    found = []
    ours_s = seconds(lambda: found.append(rm.second_moments(
        model, tokenizer, LAYERS, text, ROWS * LENGTH, row_length=LENGTH)), min(repeats, 3))
    ours = {layer: moment.value() for layer, moment in found[0].items()}
    part = ids if full else ids[: ROWS // 4]
    direct_s = seconds(lambda: directly(model, part), 1) * ROWS / len(part)
    theirs = in_torch(TORCH, model, {"ids": ids, "layers": LAYERS})
    torch_s = theirs and float(theirs["seconds"])
    apart = theirs and max(float(np.linalg.norm(theirs[str(layer)] - matrix)
                                 / np.linalg.norm(matrix)) for layer, matrix in ours.items())
    return [{"name": "moments", "ours_s": ours_s, "direct_s": direct_s, "torch_s": torch_s,
             "direct_ratio": direct_s / ours_s, "torch_ratio": torch_s and torch_s / ours_s,
             "necessary_gflop": necessary_gflop(Decoder(model)),
             "tokens_per_second": ROWS * LENGTH / ours_s, "largest_difference": apart}]


def directly(model, ids) -> dict:
    """{layer: C} by whole runs of the model in MLX."""
    paths = {layer: Decoder(model).path(layer, "down") for layer in LAYERS}
    sums = dict.fromkeys(LAYERS, 0)
    for i in range(0, len(ids), BATCH):
        with intercept(model, keep_inputs=paths.values()) as seen:
            mx.eval(model(mx.array(ids[i: i + BATCH])))
        for layer, path in paths.items():
            keys = np.array(seen[path + ":input"], np.float64)
            keys = keys.reshape(-1, keys.shape[-1])
            sums[layer] = sums[layer] + keys.T @ keys
    return {layer: total / np.size(ids) for layer, total in sums.items()}


def necessary_gflop(decoder: Decoder) -> float:
    """Matrix products up to the last layer's keys, causal attention, and the moments' upper
    triangles."""
    tokens, last = ROWS * LENGTH, max(LAYERS)
    numbers = sum(np.prod(weight_shape(m)) for _, m in decoder.layers[0].named_modules()
                  if "weight" in m and m.weight.ndim == 2)
    down = np.prod(weight_shape(decoder.module(last, "down")))
    width = weight_shape(decoder.module(last, "down"))[1]
    products = 2.0 * tokens * (float(numbers) * (last + 1) - float(down))
    attention = 2.0 * tokens * (LENGTH + 1) * decoder.dim * (last + 1)
    moments = float(tokens) * width * (width + 1) * len(LAYERS)
    return (products + attention + moments) / 1e9
