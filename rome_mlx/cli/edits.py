"""Look at saved edits, merge several into one, or write a full model.

  rome-mlx edits show edits/*
  rome-mlx edits stack edits/eiffel edits/louvre --save-path edits/both
  rome-mlx edits fuse edits/both --save-path models/edited
"""

import numpy as np

from ..errors import RomeError
from .common import check_file, write_json

_SHOW = """What was written, by which method, into which weights, and how much of them it is.

  rome-mlx edits show edits/*
"""
_STACK = """Save one edit that does what several of one model do together.

  rome-mlx edits stack edits/eiffel edits/louvre --save-path edits/both
"""
_FUSE = """Write a full model with the edits in its weights, and say what rounding cost.

  rome-mlx edits fuse edits/both --save-path models/edited
"""


def add_arguments(parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="a table of saved edits", description=_SHOW)
    show.add_argument("edits", nargs="+", metavar="DIR")
    show.add_argument("--json", metavar="FILE", help="write the table")
    stack = actions.add_parser("stack", help="one edit that does what several do together",
                               description=_STACK)
    stack.add_argument("edits", nargs="+", metavar="DIR")
    stack.add_argument("--save-path", required=True, metavar="DIR")
    fuse = actions.add_parser("fuse", help="a full mlx-lm model with the edits in its weights",
                              description=_FUSE)
    fuse.add_argument("edits", nargs="+", metavar="DIR")
    fuse.add_argument("--save-path", required=True, metavar="DIR", help="a new directory")
    fuse.add_argument("--model", metavar="PATH|REPO", help="default: the one the edit is of")
    fuse.add_argument("--dequantize", action="store_true",
                      help="all of a quantized model becomes float, not the edited modules alone")
    fuse.add_argument("--force", action="store_true", help="also into a model of other weights")
    fuse.add_argument("--json", metavar="FILE", help="write what rounding cost")


def run(args) -> int:
    from ..editing.adapter import load_edit

    edits = [load_edit(directory) for directory in args.edits]
    check_file(getattr(args, "json", None))
    return {"show": _show, "stack": _stack, "fuse": _fuse}[args.action](args, edits)


def _show(args, edits) -> int:
    rows = []
    for directory, edit in zip(args.edits, edits, strict=True):
        print(f"{directory}: {edit.method}, {len(edit.requests)} request"
              f"{'s' * (len(edit.requests) > 1)}, of {edit.model.get('path')} "
              f"({edit.model.get('dtype')})")
        for request, (before, after) in zip(edit.requests, _probabilities(edit), strict=True):
            measured = "" if before is None else f"   P {before:.3f} → {after:.3f}"
            print(f"  {request.text} → {request.target_new.strip()}{measured}")
        modules = {}
        for path, delta in edit.deltas.items():
            modules[path] = {"rank": delta.rank, "norm": _norm(delta),
                             "norm_change": _norm(delta) / edit.fingerprints[path][2]}
            print(f"    {path:<36} rank {delta.rank:<4} changed by "
                  f"{100 * modules[path]['norm_change']:.2f} % of its norm")
        rows.append({"path": directory, "method": edit.method, "model": edit.model,
                     "requests": [vars(request) for request in edit.requests],
                     "modules": modules})
    write_json(args.json, rows)
    return 0


def _norm(delta) -> float:
    """‖ΔW‖, Frobenius."""
    return float(np.sqrt(max(0.0, np.sum((delta.a.T @ delta.a) * (delta.b @ delta.b.T)))))


def _probabilities(edit) -> list[tuple[float | None, float | None]]:
    """P(target) before and after for each request, where `rome-mlx edit` measured them."""
    checks = edit.numbers.get("checks", [edit.numbers])
    if len(checks) != len(edit.requests) or not all("probabilities" in c for c in checks):
        return [(None, None)] * len(edit.requests)
    rewrites = [check["probabilities"][0] for check in checks]
    return [(r["target_new_before"], r["target_new_after"]) for r in rewrites]


def _stack(args, edits) -> int:
    from ..editing.edit import stack

    merged = stack(edits)
    merged.save(args.save_path)
    print(f"{args.save_path}: {len(edits)} edits, {len(merged.requests)} requests, "
          f"{len(merged.deltas)} modules")
    return 0


def _fuse(args, edits) -> int:
    from ..editing.edit import stack
    from ..editing.fuse import fuse
    from ..loading import describe, load

    merged = edits[0] if len(edits) == 1 else stack(edits)
    source = args.model or merged.model.get("path")
    if source is None:
        raise RomeError("the edit does not say which model it is of; give --model")
    model, tokenizer = load(source, dtype="stored")
    lost = fuse(model, tokenizer, merged, args.save_path,
                source=describe(model, tokenizer)["path"], dequantize=args.dequantize,
                force=args.force)
    for path, error in lost.items():
        print(f"  {path:<36} rounding cost {100 * error:.4f} % of the change")
    print(f"{args.save_path}: load it with mlx_lm.load or --model {args.save_path}")
    write_json(args.json, {"path": args.save_path, "lost": lost})
    return 0
