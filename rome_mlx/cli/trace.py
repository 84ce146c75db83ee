"""Trace one fact: hide the subject with noise, put one state of the clean run back at a time,
and see how much of the answer returns.

  rome-mlx trace --prompt "{} is located in the city of" --subject "The Eiffel Tower" \\
      --kind mlp --plot trace.png
"""

import os
import sys
from textwrap import fill

from ..errors import RomeError
from .common import (
    add_model_arguments,
    check_file,
    load_model,
    noise_rule,
    positive,
    seed,
    tokens_about,
    write_json,
)


def add_arguments(parser) -> None:
    parser.add_argument("--prompt", required=True, help="with {} where the subject goes")
    parser.add_argument("--subject", required=True)
    parser.add_argument("--kind", choices=("hidden", "mlp", "attn"), default="hidden",
                        help="what is restored (default hidden)")
    parser.add_argument("--severed", choices=("mlp", "attn"),
                        help="hold that module's output corrupted in later layers")
    parser.add_argument("--fast", action="store_true",
                        help="estimate by gradients, recompute the cells that matter")
    parser.add_argument("--token-range", choices=("subject_last", "all"), default="all")
    add_corruption_arguments(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw the map")
    parser.add_argument("--json", metavar="FILE", help="write the result")
    add_model_arguments(parser, dry_run=True)


def add_corruption_arguments(parser) -> None:
    parser.add_argument("--window", type=positive, default=10,
                        help="layers restored together, mlp and attn (default 10)")
    parser.add_argument("--samples", type=positive, default=10,
                        help="corrupted runs (default 10)")
    parser.add_argument("--noise", type=noise_rule, default="s3", metavar="RULE",
                        help="s3, 0.35, u0.35, m or t5 (default s3)")
    parser.add_argument("--replace", action="store_true",
                        help="put the noise in place of the embedding")
    parser.add_argument("--noise-seed", type=seed, metavar="SEED",
                        help="of the noise alone (default: 1 + --seed)")


def sizes(args) -> dict:
    from ..facts import Fact

    return {"kind": args.kind, "samples": args.samples, "window": args.window,
            "all_tokens": args.token_range == "all",
            **tokens_about([Fact(args.prompt, args.subject)])}


def noise_seed(args) -> int:
    return 1 + args.seed if args.noise_seed is None else args.noise_seed


def run(args) -> int:
    from ..editing.layer_choice import layer_to_edit
    from ..editing.methods import ROME
    from ..facts import Fact
    from ..models.decoder import Decoder
    from ..tracing.attribution import Estimates, checked
    from ..tracing.trace import FactRuns, check_values
    from ..view.layers import layers_told

    fact = Fact(args.prompt, args.subject)
    check_values(args.kind, args.samples, args.window, args.severed)
    if args.fast and args.severed:
        raise RomeError(f"a path severed at {args.severed} cannot be estimated; leave out --fast")
    check_file(args.json)
    check_file(args.plot)
    model, tokenizer = load_model(args)
    runs = FactRuns(model, tokenizer, fact, samples=args.samples, noise=args.noise,
                    replace=args.replace, noise_seed=noise_seed(args))
    if args.fast:
        found = checked(runs, Estimates(runs).trace(args.kind, args.window, args.token_range))
        result, beside = found.trace, {"recomputed": found.to_json()}
    else:
        result, beside = runs.trace(args.kind, args.window, args.severed, args.token_range), {}
    choice = layer_to_edit(Decoder(model), ROME)
    show(result)
    if args.fast:
        print(fill(found.told, 79, subsequent_indent="  "))
    print(layers_told(result.decision, choice))
    write_json(args.json, result.to_json() | beside | {"layer_choice": choice.to_json()})
    if args.plot:
        result.plot(args.plot)
    return 0


def show(result) -> None:
    """Print a trace: the answer, and the best layers at each token; on a terminal the map too."""
    level = "" if result.noise_level is None else f" (level {result.noise_level:.3f})"
    print(f"{result.prompt.replace('{}', result.subject)!r} → {result.answer!r}")
    print(f"  clean {result.clean_prob:.3f}, corrupted {result.corrupted_prob:.3f}, "
          f"noise {result.noise}{level}, {result.samples} samples"
          + ("" if result.exact else ", estimated"))
    for position, row in zip(result.positions, result.scores, strict=True):
        begin, end = result.subject_range
        mark = "*" if begin <= position < end else " "
        best = int(row.argmax())
        print(f"  {result.tokens[position]!r:>16.16}{mark} best at layer {best:>2}: "
              f"{row[best]:.3f}")
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        from ..view.plot import terminal_map

        print(terminal_map(result))
