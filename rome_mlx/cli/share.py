"""`rome-mlx edits card` and `rome-mlx edits verify`: tell others of an edit, and check what
somebody tells of one."""

import sys

from ..errors import RomeError
from .common import check_file, fit, write_json

_CARD = """Write DIR/README.md, a model card for the hub: what was changed, the evidence, how to use
and undo it. DIR: a saved edit, or a model that `edits fuse` wrote.

  rome-mlx edits card edits/eiffel --license apache-2.0
  hf upload me/eiffel edits/eiffel
"""
_VERIFY = """Measure again what a saved edit says of itself, and what its card says: the numbers in
edit.json. Exit status 1 where one does not hold.

  rome-mlx edits verify edits/eiffel
"""


def add_actions(actions) -> None:
    card = actions.add_parser("card", help="a model card, as DIR/README.md", description=_CARD)
    card.add_argument("directory", metavar="DIR")
    card.add_argument("--license", metavar="ID", help="such as apache-2.0 (default: unknown)")
    check = actions.add_parser("verify", help="measure again what an edit claims",
                               description=_VERIFY)
    check.add_argument("directory", metavar="DIR")
    check.add_argument("--model", metavar="PATH|REPO", help="default: the one the edit is of")
    check.add_argument("--json", metavar="FILE", help="write every number, claimed and found")


def _card(args) -> int:
    from ..view.card import write_card

    path = write_card(args.directory, args.license)
    print(f"{path}: read it" + ("" if args.license else ", fill in the license") +
          f", then\n  hf upload USER/NAME {args.directory}")
    return 0


def _verify(args) -> int:
    from ..editing.saved import load_edit
    from ..evaluation.remeasure import checks_of, remeasure
    from ..models.loading import load

    edit = load_edit(args.directory)
    check_file(args.json)
    if not checks_of(edit):
        raise RomeError(f"{args.directory!r} was saved without numbers to verify; make the edit "
                        "again with rome-mlx edit, without --no-verify")
    source = args.model or edit.model.get("path")
    if source is None:
        raise RomeError("the edit does not say which model it is of; give --model")
    dtype = edit.model.get("dtype")
    model, tokenizer = load(source, dtype=dtype if dtype in ("float32", "bfloat16")
                            and not edit.in_codes else "stored")
    claims = remeasure(model, tokenizer, edit)
    print(f"{'claim':<50}{'claimed':>10}{'found':>10}{'±':>8}")
    of = None
    for claim in claims:
        if claim.of != of:
            of = claim.of
            print(f"\n{fit(of, 80)}")
        print(f"  {claim.name:<46}{claim.claimed:>12.4g}{claim.found:>10.4g}{claim.tolerance:>8.2g}"
              + ("" if claim.holds else "  NO"))
    broken = [claim for claim in claims if not claim.holds]
    write_json(args.json, {"path": args.directory, "holds": not broken,
                           "claims": [claim.to_json() for claim in claims]})
    if broken:
        print(f"rome-mlx: {len(broken)} of {len(claims)} claims do not hold", file=sys.stderr)
        return 1
    print(f"\nAll {len(claims)} claims hold.")
    return 0


ACTIONS = {"card": _card, "verify": _verify}
