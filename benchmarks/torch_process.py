"""PyTorch in a process of its own, where no other library's threads or BLAS slow it.

It is looked for in the Python of ROME_MLX_TORCH_PYTHON, or in this one.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mlx.utils import tree_flatten
from timing import mx


def torch_device() -> str:
    """PyTorch's name of what MLX computes on, but Metal, which was not tried."""
    return "cuda" if mx.default_device() == mx.gpu and sys.platform == "linux" else "cpu"


def in_torch(script: str, model, arrays: dict) -> dict | None:
    """What the script saves in its third argument, an npz file; None where it cannot run.

    Its first two arguments are the model's directory for transformers and the arrays' npz file,
    to which the device's name is added.
    """
    python = os.environ.get("ROME_MLX_TORCH_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        save_for_torch(model, work / "model")
        np.savez(work / "in.npz", device=torch_device(), **arrays)
        out = subprocess.run([python, "-c", script, str(work / "model"), str(work / "in.npz"),
                              str(work / "out.npz")], capture_output=True, text=True, check=False)
        if out.returncode:
            print(f"PyTorch is left out: {out.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
        with np.load(work / "out.npz", allow_pickle=False) as found:
            return dict(found)


@contextmanager
def served(script: Path, model, arrays: dict) -> Iterator[Callable[[int], dict] | None]:
    """A function that has the script's process do one piece of work; None where it cannot run.

    Its arguments are as those of `in_torch` but the last. It writes a line of JSON when it is
    ready, and one for every number that it reads.
    """
    python = os.environ.get("ROME_MLX_TORCH_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        save_for_torch(model, work / "model")
        np.savez(work / "in.npz", device=torch_device(), **arrays)
        with subprocess.Popen([python, script, work / "model", work / "in.npz"], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

            def ask(number: int) -> dict:
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            yield ask if process.stdout.readline() else None
            process.stdin.close()


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
