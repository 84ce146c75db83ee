"""How large a model, on this machine: seconds and peak memory of each command, and what
`--dry-run` had said.

  python benchmarks/scaling.py 135m 360m 1.1b --corpus TEXT --json scaling.json --repeats 3
  python benchmarks/scaling.py 3b-4bit 8b-4bit --corpus TEXT --json scaling.json
  python benchmarks/scaling.py MODEL.gguf --corpus TEXT --json scaling.json
  python benchmarks/scaling.py 135m --corpus TEXT --json scaling.json --tokens 40 160 --facts 10 80
  python benchmarks/scaling.py --json scaling.json --plot size.png    # of what is there

Models are of Llama's shape with random weights (the same in every layer: a command reads them alike
and they are made in seconds), the default model's vocabulary and tokenizer, float32 or 4-bit in
groups of 64; or one that is there. Each command runs in a process of its own, whose peak memory the
system tells, and MLX that of its arrays; moments are counted once, on --corpus, before the edit.
--tokens adds traces and edits of longer prompts, --facts edits of many facts by MEMIT. Of --repeats
the median, the fastest and the slowest are kept. The share of the peak is the arithmetic of the
plan, by the command's seconds and what a large product reaches.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402
from timing import peak_gflops  # noqa: E402

import rome_mlx as rm  # noqa: E402
from rome_mlx.models.loading import describe  # noqa: E402
from rome_mlx.models.weights import floats_of  # noqa: E402
from rome_mlx.storage.files import read_json  # noqa: E402
from rome_mlx.storage.places import cache_directory, data_path  # noqa: E402

#: width, keys' width, layers, heads, heads of keys and values
SHAPES = {"135m": (576, 1536, 30, 9, 3), "360m": (960, 2560, 32, 15, 5),
          "1.1b": (2048, 5632, 22, 32, 4), "3b": (3072, 8192, 28, 24, 8),
          "8b": (4096, 14336, 32, 32, 8)}
VOCABULARY = 49152
FACT = ["--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower"]
COMMANDS = {
    "trace": ["trace", *FACT, "--kind", "mlp", "--samples", "4", "--token-range", "subject_last"],
    "moments": ["moments", "--layers", "4", "--corpus", "{corpus}", "--tokens", "2048",
                "--output", "{work}/moments"],
    "edit": ["edit", *FACT, "--target-new", "Rome", "--layer", "4", "--moments", "{work}/moments",
             "--hyperparameters", "{work}/ridge.json", "--no-verify"],
    "eval": ["eval", "counterfact", "--limit", "3", "--generations", "0", "--layer", "4",
             "--moments", "{work}/moments", "--hyperparameters", "{work}/ridge.json",
             "--output", "{work}/eval"],
}
MANY = ["edit", "--requests", "{work}/facts.json", "--method", "memit", "--hyperparameters",
        "{work}/memit.json", "--moments", "{work}/moments", "--no-verify"]
CHILD = """
import sys
from rome_mlx.cli import main
status = main(sys.argv[2:])
import mlx.core as mx
open(sys.argv[1], "w").write(str(mx.get_peak_memory()))
sys.exit(status)
"""
FILLER = "which was seen by many people on the day when it was shown to the public, "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="SIZE|PATH",
                        help=f"{', '.join(SHAPES)}, each also as SIZE-4bit; or a model's path")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="of longer prompts")
    parser.add_argument("--facts", type=int, nargs="*", default=[], help="of an edit by MEMIT")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--corpus", metavar="FILE", help="to count moments over")
    parser.add_argument("--plot", metavar="FILE.png", help="seconds and memory against parameters")
    parser.add_argument("--json", metavar="FILE", required=True, help="rows are added to it")
    args = parser.parse_args()
    if args.models and not args.corpus:
        parser.error("give --corpus FILE")
    peak = peak_gflops()
    for name in args.models:
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "ridge.json").write_text('{"ridge": 0.01}')
            (Path(work) / "memit.json").write_text('{"layers": [4]}')
            path = name if Path(name).exists() else made(name, Path(work) / "model")
            for command, words in commands(args, Path(work)):
                words = [word.format(work=work, corpus=args.corpus)
                         if word.startswith("{work}") or word == "{corpus}" else word
                         for word in words]
                row = {"model": Path(name).name, "command": command, "peak_gflops": peak,
                       "parameters": floats_of(rm.load(path, dtype="stored", lazy=True)[0]) / 4,
                       **repeated(words, path, args.repeats, Path(work))}
                print(" | ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                                 for k, v in row.items()), flush=True)
                add(Path(args.json), row)
    rows = json.loads(Path(args.json).read_text())
    print(table(rows))
    if args.plot:
        draw(rows, args.plot)


def commands(args, work: Path):
    """(name, words) of all that is to be measured, one after the other."""
    for name in args.commands:
        yield name, COMMANDS[name]
    for tokens in args.tokens:
        filler = " ".join((FILLER * tokens).split()[:max(1, tokens - 11)])  # a token a word
        for name in [one for one in args.commands if one in ("trace", "edit")]:
            words = list(COMMANDS[name])
            words[words.index(FACT[1])] = f"{{}}, {filler}, is located in the city of"
            yield f"{name}, {tokens} tokens", words
    for count in args.facts:
        records = read_json(data_path("counterfact.json"))[:count]
        (work / "facts.json").write_text(json.dumps(records))
        yield f"edit, {len(records)} facts", MANY


def repeated(words: list[str], model, repeats: int, work: Path) -> dict:
    """The medians of `measured`, and the fastest and slowest seconds."""
    found = [measured(words, model, work) for _ in range(repeats)]
    seconds = [one["seconds"] for one in found]
    return {name: float(np.median([one[name] for one in found])) for name in found[0]} | {
        "spread": [min(seconds), max(seconds)], "repeats": repeats}


def measured(words: list[str], model, work: Path) -> dict:
    """Seconds and peak memory of one command, and what a dry run says before it. Nothing is at hand
    of earlier runs but the model and, where they are read, its moments."""
    cache = work / "cache"
    for left in (cache, work / "eval", *([work / "moments"] if words[0] == "moments" else ())):
        shutil.rmtree(left, ignore_errors=True)
    cache.mkdir()
    (cache / "models").symlink_to(cache_directory() / "models")
    environment = {**os.environ, "ROME_MLX_CACHE": str(cache)}
    call = [sys.executable, "-m", "rome_mlx", *words, "--model", str(model)]
    said = subprocess.run([*call, "--dry-run"], capture_output=True, text=True, check=True,
                          cwd=ROOT, env=environment).stdout
    call[1:3] = ["-c", CHILD, str(work / "peak")]
    began = time.monotonic()
    child = subprocess.Popen(call, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    seconds, processor = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    if status:
        raise SystemExit(f"{' '.join(call)} failed")
    scale = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "memory_gb": usage.ru_maxrss * scale / 1e9,
            "device_gb": float((work / "peak").read_text()) / 1e9, "processor_s": processor,
            **planned(said)}


def planned(said: str) -> dict:
    """The figures of a dry run."""
    found = re.match(r"\w+: about ([\d.]+) (s|min|h) and ([\d.]+) GB", said)
    seconds = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]
    return {"planned_s": seconds, "planned_gb": float(found[3]),
            "tflop": float(re.search(r"([\d.e+-]+) TFLOP", said)[1])}


def made(name: str, path: Path) -> Path:
    """A model of a size, written layer by layer."""
    size, _, bits = name.partition("-")
    if size not in SHAPES or bits not in ("", "4bit"):
        raise SystemExit(f"{name!r} is neither a path nor one of {', '.join(SHAPES)}, or -4bit")
    dim, width, layers, heads, shared = SHAPES[size]
    path.mkdir(parents=True)
    source = Path(describe(*rm.load(dtype="stored", lazy=True))["path"])
    for file in source.glob("*token*"):
        shutil.copy(file, path)
    config = {"model_type": "llama", "hidden_size": dim, "intermediate_size": width,
              "num_hidden_layers": layers, "num_attention_heads": heads,
              "num_key_value_heads": shared, "head_dim": dim // heads, "vocab_size": VOCABULARY,
              "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": False,
              "max_position_embeddings": 8192}
    if bits:
        config |= {name: {"group_size": 64, "bits": 4}
                   for name in ("quantization", "quantization_config")}
    (path / "config.json").write_text(json.dumps(config))
    random, inner = np.random.RandomState(0), {
        "self_attn.q_proj": (dim, dim), "self_attn.o_proj": (dim, dim),
        "self_attn.k_proj": (shared * dim // heads, dim),
        "self_attn.v_proj": (shared * dim // heads, dim), "mlp.gate_proj": (width, dim),
        "mlp.up_proj": (width, dim), "mlp.down_proj": (dim, width)}
    block = parts({name: random.standard_normal(shape).astype(np.float32) / shape[1] ** 0.5
                   for name, shape in inner.items()}, bool(bits))
    block |= {f"{norm}_layernorm.weight": mx.ones(dim) for norm in ("input", "post_attention")}
    for layer in range(layers):
        mx.save_safetensors(str(path / f"model-{layer:03d}.safetensors"),
                            {f"model.layers.{layer}.{name}": x for name, x in block.items()})
    words = random.standard_normal((VOCABULARY, dim)).astype(np.float32)
    mx.save_safetensors(str(path / "model-words.safetensors"), {
        "model.norm.weight": mx.ones(dim), **parts({"model.embed_tokens": words * 0.02, "lm_head":
                                                    words / dim ** 0.5}, bool(bits))})
    return path


def parts(weights: dict[str, np.ndarray], quantized: bool) -> dict[str, mx.array]:
    found = {}
    for name, weight in weights.items():
        arrays = mx.quantize(mx.array(weight), group_size=64, bits=4) if quantized \
            else [mx.array(weight)]
        found |= {f"{name}.{part}": x for part, x in
                  zip(("weight", "scales", "biases"), arrays, strict=False)}
    return found


def table(rows: list[dict]) -> str:
    """What is in docs/size.md."""
    lines = ["| model | command | seconds | predicted | peak memory, GB | predicted | of the peak "
             "|", "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(
        f"| {row['model']} | {row['command']} | {spread(row)} | {row['planned_s']:.0f} | "
        f"{row['memory_gb']:.1f} | {row['planned_gb']:.1f} | {100 * share(row):.0f} % |"
        for row in rows)])


def spread(row: dict) -> str:
    """The median, and the fastest and slowest where there were several."""
    if row.get("repeats", 1) == 1:
        return f"{row['seconds']:.0f}"
    return f"{row['seconds']:.1f} ({row['spread'][0]:.1f} to {row['spread'][1]:.1f})"


def draw(rows: list[dict], path: str) -> None:
    """Seconds and peak memory of each command against the model's parameters."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key, words in zip(figure.subplots(1, 2), ("seconds", "memory_gb"),
                                ("seconds", "peak memory, GB"), strict=True):
        for command, color in zip(COMMANDS, ("#0072b2", "#767c86", "#d55e00", "#009e73"),
                                  strict=True):
            for quantized in (False, True):
                some = sorted((row["parameters"] / 1e9, row[key], row["model"]) for row in rows
                              if row["command"] == command and "parameters" in row
                              and row["model"].endswith("4bit") is quantized)
                if some:
                    x, y, _ = zip(*some, strict=True)
                    axes.plot(x, y, color=color, marker="s" if quantized else "o", markersize=4,
                              linestyle=":" if quantized else "-",
                              label=command + (", 4 bits" if quantized else ", float32"))
        axes.set(xscale="log", yscale="log", xlabel="parameters, billions", title=words)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda tick, _: f"{tick:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def share(row: dict) -> float:
    """Of what large products reach in the command's time, start and all."""
    return 1e3 * row["tflop"] / (row["seconds"] * row["peak_gflops"])


def add(file: Path, row: dict) -> None:
    rows = json.loads(file.read_text()) if file.exists() else []
    rows = [one for one in rows if (one["model"], one["command"]) != (row["model"], row["command"])]
    file.write_text(json.dumps([*rows, row], indent=1))


if __name__ == "__main__":
    main()
