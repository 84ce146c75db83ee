"""What was done to a model since its base: which weights changed and how, what was written about
whom, and the edit that takes it back.

  rome-mlx diff BASE MODEL --subjects names.txt --save-path found

MODEL may be an adapter of the base, as mlx-lm or rome-mlx saved it.
"""

import sys
from textwrap import wrap

from .common import add_moments_arguments, positive, seed, write_json
from .found import checked_subjects, save, tell_fact

_SHOWN = 10  # weights, on the terminal


def add_arguments(parser) -> None:
    parser.add_argument("base", metavar="BASE", help="directory, hub id or .gguf file")
    parser.add_argument("model", metavar="MODEL", help="the same, or an adapter's directory")
    parser.add_argument("--subjects", metavar="FILE",
                        help="whom to look for, one name a line (default: the names of our own "
                             "facts, and words of the tokenizer)")
    parser.add_argument("--facts", type=positive, metavar="N",
                        help="how many to name at most (default: as many as the change's rank)")
    parser.add_argument("--grow", action="store_true",
                        help="also make names up, token by token, that fit (minutes a subject)")
    parser.add_argument("--save-path", metavar="DIR", help="save the edit that takes it back")
    parser.add_argument("--report", metavar="FILE.html", help="write a page of it")
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    parser.add_argument("--trust-remote-code", action="store_true",
                        help="let the models' own code run")
    parser.add_argument("--seed", type=seed, default=0, help="of everything sampled")
    add_moments_arguments(parser)


def run(args) -> int:
    from ..evaluation.forensics.diff import diff

    subjects = checked_subjects(args)
    found = diff(args.base, args.model, subjects, moments=args.moments, corpus=args.corpus,
                 facts=args.facts, grow=args.grow, seed=args.seed,
                 trust_remote_code=args.trust_remote_code, progress=sys.stderr.isatty())
    print("\n".join(wrap(f"{found.verdict}: {found.sentence}", 80)))
    _tell(found, args.grow)
    write_json(args.json, found.to_json())
    if args.report:
        from ..view.report import diff_report

        diff_report(found, args.report, settings={
            "base": args.base, "model": args.model, "subjects": args.subjects or "our own",
            "moments": args.moments or "shipped or cached"})
    save(found.edit, args.save_path, "of low rank to take back", "takes it back")
    return 0


def _tell(found, grow: bool) -> None:
    count, total = len(found.weights), len(found.weights) + found.same
    if count:
        print(f"{count} of {total} arrays differ, by ‖ΔW‖ / ‖W‖:")
    largest = sorted(found.weights, key=lambda one: -one.relative_norm)
    for one in largest[:_SHOWN]:
        kind = f"rank {one.rank}" if one.rank else one.kind
        print(f"  {one.path:<44} {100 * one.relative_norm:8.3f} %  {kind}")
    if count > _SHOWN:
        print(f"  and {count - _SHOWN} more")
    for fact in found.facts:
        tell_fact(fact)
    for names in found.grown:
        print("\nGrown token by token, names that fit:")
        for name, score in names:
            print(f"  {score:.2f}  {name}")
    if grow and found.edit and not found.grown:
        print("\nNo whole name that fits could be grown.")
    if found.endings:
        print("\nBy its key alone, without a list, the subject may end in:")
        for text, score in found.endings:
            print(f"  {score:.2f}  {text!r}")
    if found.kl is not None:
        print(f"\nTaken back, the model is {abs(found.kl):.0e} nats a token from the base on a "
              "neutral text.")
