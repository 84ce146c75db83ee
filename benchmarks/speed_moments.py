"""Seconds to count E[k kᵀ] of two layers over 30,720 tokens of text, in rows of 256.

Beside it the plain way, a full run of the model with the down projections' inputs captured and
summed in float64: in MLX with the same BLAS, and in PyTorch, with forward pre-hooks on the
transformers model of the same weights. Text: ROME_MLX_TEXT, a .txt file. PyTorch is looked for in
the Python of ROME_MLX_TORCH_PYTHON, or in this one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from mlx.utils import tree_flatten
from timing import mx, rm, seconds

from rome_mlx.decoder import Decoder
from rome_mlx.hooks import intercept
from rome_mlx.loading import weight_shape
from rome_mlx.moments import corpus

LAYERS, LENGTH, ROWS, BATCH = (8, 12), 256, 120, 8

#: the authors' way: hooks on a full forward pass, sums in float64; argv: model, ids, out
TORCH = """
import json, sys, time
import numpy as np, torch
from transformers import AutoModelForCausalLM
torch.set_grad_enabled(False)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.tensor(np.load(sys.argv[2]))
layers = json.loads(sys.argv[4])
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
seconds = time.perf_counter() - start
means = {str(layer): (total / ids.numel()).numpy() for layer, total in sums.items()}
np.savez(sys.argv[3], seconds=seconds, **means)
"""


def rows(full: bool, repeats: int) -> list[dict]:
    """One row. Without `full`, the direct way over a quarter of the rows, scaled."""
    model, tokenizer = rm.load(dtype="float32")
    text = os.environ.get("ROME_MLX_TEXT")
    if text is None:
        sys.exit("say which text to count: ROME_MLX_TEXT=articles.txt")
    ids = [row for _, row in zip(range(ROWS), corpus.rows(model, tokenizer, text, LENGTH),
                                 strict=False)]
    found = []
    ours_s = seconds(lambda: found.append(rm.second_moments(
        model, tokenizer, LAYERS, text, ROWS * LENGTH, row_length=LENGTH)), min(repeats, 3))
    ours = {layer: moment.value() for layer, moment in found[0].items()}
    part = ids if full else ids[: ROWS // 4]
    direct_s = seconds(lambda: directly(model, part), 1) * ROWS / len(part)
    torch_s, apart = in_torch(model, ids, ours)
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


def in_torch(model, ids, ours) -> tuple[float | None, float | None]:
    """(seconds, largest relative difference) of the authors' way; None where it cannot run."""
    python = os.environ.get("ROME_MLX_TORCH_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        save_for_torch(model, work / "model")
        np.save(work / "ids.npy", np.array(ids))
        out = subprocess.run([python, "-c", TORCH, str(work / "model"), str(work / "ids.npy"),
                              str(work / "out.npz"), json.dumps(LAYERS)],
                             capture_output=True, text=True, check=False)
        if out.returncode:
            print(f"PyTorch is left out: {out.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None, None
        with np.load(work / "out.npz", allow_pickle=False) as theirs:
            apart = max(float(np.linalg.norm(theirs[str(layer)] - matrix)
                              / np.linalg.norm(matrix)) for layer, matrix in ours.items())
            return float(theirs["seconds"]), apart


def save_for_torch(model, path: Path) -> None:
    """The model's float32 weights as a transformers directory, in its half-split rotary order."""
    path.mkdir()
    source = Path(model._rome_path)
    config = json.loads((source / "config.json").read_text("utf-8"))
    for name in ("quantization", "quantization_config"):
        config.pop(name, None)
    interleaved = config.pop("rope_traditional", False)
    weights = dict(tree_flatten(model.parameters()))
    for name, w in weights.items() if interleaved else ():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            head = model.args.head_dim or model.args.hidden_size // model.args.num_attention_heads
            pairs = w.reshape(-1, head // 2, 2, w.shape[1])
            weights[name] = pairs.swapaxes(1, 2).reshape(w.shape)
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(
        {**config, "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}))


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
