"""Trace many facts and average: which layers carry what this model knows. A run that is stopped
goes on where it was; under mlx.launch the ranks share the facts out.

  rome-mlx locate --facts known_facts.json --limit 100 --output located --plot effects.png
"""

import argparse
import shlex
import sys
from pathlib import Path

from .common import (
    add_model_arguments,
    check_file,
    load_model,
    positive,
    tokens_about,
    write_json,
)
from .trace import add_corruption_arguments, noise_seed

_CALIBRATION = 60  # subjects that a file needs to set the noise level by itself


def add_arguments(parser) -> None:
    parser.add_argument("--facts", required=True, metavar="FILE",
                        help="JSON or JSONL with prompt, subject and attribute")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N facts only")
    parser.add_argument("--kinds", type=_kinds, default=("hidden", "mlp", "attn"),
                        metavar="hidden,mlp,attn", help="what is restored (default all three)")
    parser.add_argument("--token-range", choices=("subject_last", "all"), default="all",
                        help="subject_last is several times faster (default all)")
    add_corruption_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="one file a fact; where it resumes")
    parser.add_argument("--plot", metavar="FILE", help="draw the average effects")
    parser.add_argument("--json", metavar="FILE", help="write the result")
    add_model_arguments(parser, dry_run=True)


def sizes(args) -> dict:
    from ..storage.fact_files import read_facts

    facts = read_facts(args.facts)[:args.limit]
    return {"cases": len(facts) * len(args.kinds), "samples": args.samples,
            "all_tokens": args.token_range == "all",
            **tokens_about(facts)}


def run(args) -> int:
    import mlx.core as mx

    from ..editing.layer_choice import keep_profile, layer_to_edit
    from ..editing.methods import ROME
    from ..models.decoder import Decoder
    from ..models.loading import describe
    from ..storage.fact_files import read_facts
    from ..tracing.average import average_effects

    facts = read_facts(args.facts)
    check_file(args.json)
    check_file(args.plot)
    check_file(args.output)
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    model, tokenizer = load_model(args)
    effects = average_effects(
        model, tokenizer, facts[:args.limit], args.kinds, samples=args.samples,
        noise=args.noise, window=args.window, replace=args.replace, noise_seed=noise_seed(args),
        token_range=args.token_range, output=args.output, progress=sys.stderr.isatty(),
        subjects=subjects if len(subjects) >= _CALIBRATION else None)
    if mx.distributed.init().rank() == 0:
        kept = keep_profile(effects)
        choice = layer_to_edit(Decoder(model), ROME)
        show(effects, choice)
        if kept:
            print("Kept as this model's profile, for where nothing else names a layer.")
        write_json(args.json, {"model": describe(model, tokenizer)["type"],
                               "command": _command(args), **effects.to_json(),
                               "layer_choice": choice.to_json()})
        if args.plot:
            effects.plot(args.plot)
    return 0


def show(effects, choice=None) -> None:
    """Print the averages: the total effect, each kind's peak and thirds, the decisive layer, and
    the layer to edit."""
    low, high = effects.ate.ci95
    print(f"{effects.facts_used} facts used, {len(effects.skipped)} skipped, which the model does "
          f"not know;\naverage total effect {effects.ate.mean:.3f} [{low:.3f}, {high:.3f}]")
    print("at the subject's last token   peak              early  middle  late")
    for kind in effects.kinds:
        effect = effects.aie(kind)
        best = int(effect.mean.argmax())
        thirds = "  ".join(f"{value:.3f}" for value in effects.thirds(kind).values())
        print(f"  {kind:<8} layer {best:>2}: {effect.mean[best]:.3f} "
              f"[{effect.ci95[best, 0]:.3f}, {effect.ci95[best, 1]:.3f}]   {thirds}")
    from ..view.layers import layers_told

    print(layers_told(effects.decision, choice))


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    if not set(kinds) <= {"hidden", "mlp", "attn"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of hidden, mlp and attn")
    return kinds


def _command(args) -> str:
    """The command that makes the same numbers."""
    words = ["rome-mlx", "locate", "--facts", Path(args.facts).name, "--kinds",
             ",".join(args.kinds)]
    for flag in ("limit", "token_range", "window", "samples", "noise", "noise_seed", "seed",
                 "model"):
        if (value := getattr(args, flag)) is not None:
            words += ["--" + flag.replace("_", "-"), str(value)]
    return shlex.join([*words, *(["--replace"] if args.replace else [])])
