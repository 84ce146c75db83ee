"""Look at saved edits, merge several into one, or write a full model.

  rome-mlx edits show edits/*
  rome-mlx edits stack edits/eiffel edits/louvre --save-path edits/both
  rome-mlx edits fuse edits/both --save-path models/edited
  rome-mlx edits withdraw edits/many --subject "The Louvre"
  rome-mlx edits card edits/eiffel --license apache-2.0
  rome-mlx edits verify edits/eiffel
"""

from pathlib import Path

from ..errors import RomeError
from . import share
from .common import check_file, fit, write_json

_SHOW = """What was written, by which method, into which weights, and how much of them it is.

  rome-mlx edits show edits/*
"""
_STACK = """Save one edit that does what several of one model do together.

  rome-mlx edits stack edits/eiffel edits/louvre --save-path edits/both
"""
_FUSE = """Write a full model with the edits in its weights, and say what rounding cost.

  rome-mlx edits fuse edits/both --save-path models/edited
"""
_WITHDRAW = """Take facts back out of a sequence that rome-mlx edit --batch saved: the equations of
memit or alphaedit are solved without them. The rest stays as it was.

  rome-mlx edits withdraw edits/many --subject "The Louvre"
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
    fuse.add_argument("--keep-bits", action="store_true",
                      help="change the quantized model's own codes: as large and fast as it was")
    fuse.add_argument("--moments", metavar="DIR", help="for --keep-bits: the edit's own")
    fuse.add_argument("--force", action="store_true", help="also into a model of other weights")
    fuse.add_argument("--json", metavar="FILE", help="write what rounding cost")
    back = actions.add_parser("withdraw", help="take facts of a sequence back",
                              description=_WITHDRAW)
    back.add_argument("directory", metavar="DIR")
    back.add_argument("--subject", required=True, help="of the facts to take back")
    back.add_argument("--prompt", help="with {}; only the fact of this prompt")
    back.add_argument("--moments", metavar="DIR", help="as the sequence was written with")
    back.add_argument("--model", metavar="PATH|REPO", help="default: the one the edit is of")
    back.add_argument("--dtype", default="auto",
                      choices=["auto", "float32", "bfloat16", "stored"])
    share.add_actions(actions)


def run(args) -> int:
    from ..editing.adapter import check_destination
    from ..editing.fuse import check_new
    from ..editing.saved import load_edit

    if args.action == "withdraw":
        from .sequence import withdraw

        return withdraw(args)
    if args.action in share.ACTIONS:
        return share.ACTIONS[args.action](args)
    edits = [load_edit(directory) for directory in args.edits]
    check_file(getattr(args, "json", None))
    if args.action != "show":
        {"stack": check_destination, "fuse": check_new}[args.action](args.save_path)
    return {"show": _show, "stack": _stack, "fuse": _fuse}[args.action](args, edits)


_MOST = 10  # facts and weights of an edit that are printed


def _show(args, edits) -> int:
    rows = []
    print(f"{'edit':<46}{'rank':>6}{'change':>9}{'P before → after':>19}")
    for directory, edit in zip(args.edits, edits, strict=True):
        facts = [(request, *p) for request, p in
                 zip(edit.requests, _probabilities(edit), strict=True)]
        modules = {path: {"rank": getattr(delta, "rank", None), "norm": delta.norm,
                          "codes": getattr(delta, "share", None),
                          "norm_change": delta.norm / edit.fingerprints[path][2]}
                   for path, delta in edit.deltas.items()}
        print(f"\n{fit(directory, 80)}\n{fit('  ' + _origin(edit), 80)}")
        _rows("facts", [f"{fit(_said(request), 63):<63}"
                        + (f"{before:>9.3f} → {after:.3f}" if before is not None else "")
                        for request, before, after in facts])
        _rows("weights", [f"{fit('  ' + path, 46):<46}{_size(m):>6}{m['norm_change']:>9.1%}"
                          for path, m in modules.items()])
        rows.append({"path": directory, "method": edit.method, "model": edit.model,
                     "requests": [vars(request) for request in edit.requests],
                     "modules": modules})
    print("\nrank, or the share of a quantized weight's codes that change; change: of the\n"
          "weight's norm; P: of the new target")
    write_json(args.json, rows)
    return 0


def _size(module: dict) -> str:
    return f"{module['codes']:.1%}" if module["rank"] is None else str(module["rank"])


def _rows(name: str, lines: list[str]) -> None:
    """At most ten lines, and how many more there are."""
    for line in lines[:_MOST]:
        print(line.rstrip())
    if len(lines) > _MOST:
        print(f"  … {len(lines) - _MOST} more {name}; --json has all")


def _origin(edit) -> str:
    layers = ", ".join(map(str, edit.layers))
    model = Path(edit.model.get("path") or "an unnamed model").name
    return (f"{edit.method} at layer{'s' * (len(edit.layers) > 1)} {layers}, of {model} "
            f"({edit.model.get('dtype')})")


def _said(request) -> str:
    return f"  {request.text} → {request.target_new.strip()}"


def _probabilities(edit) -> list[tuple[float | None, float | None]]:
    """P(target) before and after for each request, where `rome-mlx edit` measured them."""
    try:
        checks = edit.numbers.get("checks", [edit.numbers])
        rewrites = [check["probabilities"][0] for check in checks]
        found = [(float(r["target_new_before"]), float(r["target_new_after"])) for r in rewrites]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        found = []
    return found if len(found) == len(edit.requests) else [(None, None)] * len(edit.requests)


def _stack(args, edits) -> int:
    from ..editing.edit import stack

    merged = stack(edits)
    merged.save(args.save_path)
    print(f"{args.save_path}: {len(edits)} edits, {len(merged.requests)} requests, "
          f"{len(merged.deltas)} module{'s' * (len(merged.deltas) > 1)}")
    return 0


def _fuse(args, edits) -> int:
    from ..editing.edit import stack
    from ..editing.fuse import fuse
    from ..models.loading import describe, load

    if args.keep_bits and args.dequantize:
        raise RomeError("--keep-bits and --dequantize are opposites; give one")
    merged = edits[0] if len(edits) == 1 else stack(edits)
    source = args.model or merged.model.get("path")
    if source is None:
        raise RomeError("the edit does not say which model it is of; give --model")
    model, tokenizer = load(source, dtype="stored")
    if args.keep_bits and not merged.in_codes:
        merged = merged.quantized(model, tokenizer, moments=args.moments)
    lost = fuse(model, tokenizer, merged, args.save_path,
                source=describe(model, tokenizer)["path"], dequantize=args.dequantize,
                force=args.force)
    for path, error in lost.items():
        if merged.in_codes:
            print(f"  {path:<40} {merged.deltas[path].share:.1%} of its codes changed")
            continue
        print(f"  {path:<40} rounding cost {error:.2%} of the change" if error >= 1e-4 else
              f"  {path:<40} rounding cost {error:.0e} of the change")
    print(f"{args.save_path}: load it with mlx_lm.load or --model {args.save_path}")
    write_json(args.json, {"path": args.save_path, "lost": lost})
    return 0
