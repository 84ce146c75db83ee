"""Find the layer and the hyperparameters of a model, by editing facts that it knows. What is found
is kept, and edit, eval, locate and doctor use it from then on. Stopped, it goes on where it was.

  rome-mlx calibrate --model mlx-community/Qwen2.5-0.5B-Instruct --time 20m --output qwen.json
  rome-mlx edit --model ANOTHER-COPY --hyperparameters qwen.json ...
"""

import argparse
import re
import sys

from .common import add_model_arguments, check_file, layer_list, load_model, write_json

_UNITS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """argparse type: 90s, 20m or 1.5h, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 20m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def add_arguments(parser) -> None:
    parser.add_argument("--time", type=duration, default="20m", metavar="20m",
                        help="for the search; moments come on top (default 20m)")
    parser.add_argument("--layers", type=layer_list, metavar="LIST",
                        help="to try, such as 3-8 (default: 8 over the lower three fifths)")
    parser.add_argument("--moments", metavar="DIR",
                        help="as rome-mlx moments wrote them, of the layers to try (default: "
                             "shipped or cached)")
    parser.add_argument("--corpus", nargs="+", metavar="FILE",
                        help="text to count missing moments over (default: the model's own "
                             "samples)")
    parser.add_argument("--output", metavar="FILE", help="write the preset, to hand on")
    parser.add_argument("--json", metavar="FILE", help="write the result")
    add_model_arguments(parser)


def run(args) -> int:
    from ..calibration.calibrate import calibrate
    from ..moments.corpus import check_corpus

    if args.corpus:
        check_corpus(args.corpus)
    check_file(args.output)
    check_file(args.json)
    model, tokenizer = load_model(args)
    found = calibrate(model, tokenizer, time=args.time, layers=args.layers, moments=args.moments,
                      corpus=args.corpus, seed=args.seed, progress=_tell)
    _show(found)
    if args.output:
        found.save(args.output)
        print(f"In {args.output}, for --hyperparameters of another copy of this model.")
    write_json(args.json, found.to_json())
    return 0


def _tell(stage: str, found: dict) -> None:
    if stage == "asked":
        print(f"rome-mlx: {found['known']} facts known of {found['asked']} asked, for "
              f"{found['what']}", file=sys.stderr)
    elif stage == "tried":
        if found["edits"] <= found["records"]:
            print("edits  layer  clamp  contexts  steps    ES     PS     NS  score  left")
        configuration = found["configuration"]
        hp = configuration.hyperparameters
        contexts = 1 + sum(count for count, _ in hp.context_lengths)
        print(f"{found['edits']:>5}  {configuration.layer:>5}  {hp.clamp_norm_factor:>5.1f}  "
              f"{contexts:>8}  {hp.v_num_grad_steps:>5}  {found['es']:>4.0f}   {found['ps']:>4.0f} "
              f"  {found['ns']:>4.0f}  {found['score']:>5.1f}  {found['left'] / 60:.0f} min",
              flush=True)


def _show(found) -> None:
    from ..view.compare import interval

    preset, held = found.presets["rome"], found.held_out
    print(f"\nLayer {preset['layers'][-1]}. On {held['records']} facts that chose nothing, in %:")
    for name, words in (("es", "rewrites"), ("ps", "paraphrases"), ("ns", "neighbors")):
        print(f"  {words:<12} {held[name]['mean']:5.1f} {interval(name, held[name])}")
    print(f"  {'unedited':<12} {held['ns_unedited']['mean']:5.1f} of neighbors\n"
          f"{found.edits_tried} edits in {found.seconds / 60:.1f} min. Kept: edit, eval and locate "
          "use it for this model from now on.")
