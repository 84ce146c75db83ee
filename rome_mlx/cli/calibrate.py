"""Find the layer and the hyperparameters of a model, by editing facts that it knows. What is found
is kept, and edit, eval, locate and doctor use it from then on. Stopped, it goes on where it was.

  rome-mlx calibrate --model mlx-community/Qwen2.5-0.5B-Instruct --time 20m --output qwen.json
  rome-mlx edit --model ANOTHER-COPY --hyperparameters qwen.json ...
"""

import argparse
import re
import sys

from .common import (
    add_model_arguments,
    add_moments_arguments,
    check_file,
    check_moments_corpus,
    layer_list,
    load_model,
    write_json,
)

_UNITS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """argparse type: 90s, 20m or 1.5h, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 20m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def methods(text: str) -> list[str]:
    """argparse type: methods of many facts, or none."""
    from ..calibration.many import METHODS

    names = [] if text == "none" else text.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(METHODS)}")
    return names


def add_arguments(parser) -> None:
    parser.add_argument("--time", type=duration, default="20m", metavar="20m",
                        help="for the search; moments come on top (default 20m)")
    parser.add_argument("--layers", type=layer_list, metavar="LIST",
                        help="to try, such as 3-8 (default: 8 over the lower three fifths)")
    parser.add_argument("--methods", type=methods, default="memit,emmet,alphaedit", metavar="LIST",
                        help="of many facts, to calibrate beside rome, or none (default "
                             "memit,emmet,alphaedit)")
    add_moments_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="write the preset, to hand on")
    parser.add_argument("--json", metavar="FILE", help="write the result")
    add_model_arguments(parser)


def run(args) -> int:
    from ..calibration.calibrate import calibrate

    check_moments_corpus(args)
    check_file(args.output)
    check_file(args.json)
    model, tokenizer = load_model(args)
    found = calibrate(model, tokenizer, time=args.time, layers=args.layers, moments=args.moments,
                      methods=args.methods, corpus=args.corpus, seed=args.seed,
                      progress=_Told().tell)
    _show(found)
    if args.output:
        found.save(args.output)
        print(f"Preset in {args.output}, for --hyperparameters with another copy of it.")
    write_json(args.json, found.to_json())
    return 0


def _own(configuration) -> str:
    """What is a method's own of its hyperparameters, in words."""
    own = ("update_weight", "moment_scale", "ridge", "energy", "regularization")
    hp = configuration.hyperparameters
    return ", ".join(f"{name} {getattr(hp, name):g}" for name in own if hasattr(hp, name))


class _Told:
    """What calibration does, as a table that grows."""

    def __init__(self):
        self.headed = False

    def tell(self, stage: str, found: dict) -> None:
        if stage == "asked":
            print(f"rome-mlx: {found['known']} facts known of {found['asked']} asked, for "
                  f"{found['what']}", file=sys.stderr)
        elif stage == "tried":
            if not self.headed:
                print("layer  clamp  contexts  steps    KL  facts  said   ES   PS   NS  score"
                      "    left")
                self.headed = True
            layer, hp = found["configuration"].layer, found["configuration"].hyperparameters
            print(f"{layer:>5}  {hp.clamp_norm_factor:>5.1f}  {hp.contexts:>8}  "
                  f"{hp.v_num_grad_steps:>5}  {hp.kl_factor:>4.2g}  {found['records']:>5}  "
                  f"{found['said']:>4.0f}  {found['es']:>3.0f}  {found['ps']:>3.0f}  "
                  f"{found['ns']:>3.0f}  "
                  f"{found['score']:>5.1f}  {found['left'] / 60:>2.0f} min", flush=True)
        elif stage == "tried many":
            one = found["configuration"]
            print(f"{one.method} at {', '.join(map(str, one.layers))}, clamp "
                  f"{one.hyperparameters.clamp_norm_factor:g} ({one.hyperparameters.v_rule}), "
                  f"{_own(one)}:\n  {found['records']} facts at once, ES {found['es']:.0f}  PS "
                  f"{found['ps']:.0f}  NS {found['ns']:.0f}  score {found['score']:.1f}",
                  flush=True)


def _show(found) -> None:
    from ..view.compare import interval

    preset, held = found.presets["rome"], found.held_out
    print(f"\nLayer {preset['layers'][-1]}. On {held['records']} facts that chose nothing, in %:")
    for name, words in (("es", "rewrites"), ("ps", "paraphrases"), ("ns", "neighbors")):
        print(f"  {words:<12} {held[name]['mean']:5.1f} {interval(name, held[name])}")
    print(f"  {'unedited':<12} {held['ns_unedited']['mean']:5.1f} of neighbors\n"
          f"{found.edits_tried} edits in {found.seconds / 60:.1f} min. Kept: edit, eval and locate "
          "use it for this model.")
