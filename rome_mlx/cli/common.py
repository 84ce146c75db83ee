"""What the commands share: the model's flags, numbers, lists and JSON files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import RomeError
from ..storage.files import check_writable, read_json, write_json

__all__ = ["add_model_arguments", "add_moments_arguments", "check_file", "check_moments_corpus",
           "fit", "given_hyperparameters", "layer_list", "load_model", "noise_rule", "positive",
           "read_json", "seed", "tokens_about", "write_json"]


def add_model_arguments(parser: argparse.ArgumentParser, positional: bool = False,
                        dry_run: bool = False) -> None:
    """dry_run: whether the command has `sizes`, which --dry-run is told by."""
    if dry_run:
        parser.add_argument("--dry-run", action="store_true",
                            help="say what it will take in memory and time, and stop")
    group = parser.add_argument_group("model")
    if positional:
        group.add_argument("model", metavar="MODEL", help="directory, hub id or .gguf file")
    else:
        group.add_argument("--model", metavar="PATH|REPO",
                           help="directory, hub id or .gguf file (default: "
                                "SmolLM2-135M-Instruct)")
    group.add_argument("--adapter-path", metavar="DIR", help="an mlx-lm adapter to load with it")
    group.add_argument("--dtype", default="auto",
                       choices=("auto", "float32", "bfloat16", "stored"),
                       help="auto: as stored on a GPU, float32 on a CPU where that fits")
    group.add_argument("--trust-remote-code", action="store_true",
                       help="let the model's own code run")
    group.add_argument("--seed", type=seed, default=0, help="of everything sampled (default 0)")


def add_moments_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--moments", metavar="DIR",
                        help="as rome-mlx moments wrote them (default: shipped or cached)")
    parser.add_argument("--corpus", nargs="+", metavar="FILE",
                        help="text to count missing moments over (default: the model's own "
                             "samples)")


def check_moments_corpus(args) -> None:
    """Raises RomeError where --corpus cannot be read."""
    from ..moments.corpus import check_corpus

    if args.corpus:
        check_corpus(args.corpus)


def load_model(args):
    """(model, tokenizer) as the model's flags say. A saved edit is applied as an edit, so that
    editors know what it wrote; any other adapter is mlx-lm's."""
    from ..editing.saved import load_edit
    from ..models.loading import load

    options, edit, dtype = {}, None, args.dtype
    if args.adapter_path and (Path(args.adapter_path) / "edit.json").exists():
        edit = load_edit(args.adapter_path)
        dtype = "stored" if edit.in_codes else dtype
    elif args.adapter_path:
        options["adapter_path"] = args.adapter_path
    if args.trust_remote_code:
        options |= {"trust_remote_code": True,
                    "tokenizer_config": {"trust_remote_code": True}}
    model, tokenizer = load(args.model, dtype=dtype, **options)
    if edit is not None:
        edit.apply(model)
    return model, tokenizer


def tokens_about(facts: Sequence) -> dict[str, int]:
    """{"tokens", "later"} of the longest facts or requests in English, before a tokenizer is read:
    of the text, and from the subject's last token on."""
    after = [len(fact.text) - fact.subject_span[1] for fact in facts]
    return {"tokens": max(len(fact.text) for fact in facts) // 4 + 1, "later": max(after) // 4 + 1}


def positive(text: str) -> int:
    """argparse type: a count of 1 or more."""
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of 1 or more")
    return count


def seed(text: str) -> int:
    """argparse type: a seed, 0 or more and below 2³¹."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed of 0 to {2**31 - 1}")
    return int(text)


def layer_list(text: str) -> list[int]:
    """argparse type: layers such as 5,8 or 3-6."""
    layers = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            layers += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        layers = []
    if not layers or min(layers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers such as 5,8 or 3-6")
    return layers


def noise_rule(text: str) -> str:
    """argparse type: a noise rule."""
    from ..tracing.corruption import parse_rule

    try:
        parse_rule(text)
    except RomeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def given_hyperparameters(text: str | None, method: str):
    """What --hyperparameters names: nothing, a preset, or what a JSON file holds."""
    from ..editing.methods import METHODS

    return text if text in (None, "published", *METHODS[method].presets) else read_json(text)


def check_file(path: str | None) -> None:
    """Raises RomeError where an output file's directory is not there or cannot be written."""
    if path is None:
        return
    if not Path(path).absolute().parent.is_dir():
        raise RomeError(f"cannot write {path!r}: its directory does not exist; make it first")
    check_writable(path)


def tell_health(guard):
    """Print how the model with all edits stands; warnings on stderr. Returns its Health."""
    health = guard.check()
    print(f"\nTogether: perplexity on a neutral text {health.perplexity_before:.1f} → "
          f"{health.perplexity:.1f};\n  weights grew to "
          f"{max(health.growth.values()):.3f} times at most")
    for warning in health.warnings():
        print(f"rome-mlx: {warning}", file=sys.stderr)
    return health


def fit(text: str, width: int) -> str:
    """The text's printable characters, its middle left out where it is too long."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    half = width // 2
    return text if len(text) <= width else text[:half - 1] + "…" + text[half - width:]
