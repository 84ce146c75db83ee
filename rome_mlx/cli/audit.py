"""Was something written into a model? Asked of the model alone: the subjects that a down projection
answers too loudly, what is said of them, and an edit that silences them.

  rome-mlx audit MODEL --subjects names.txt --save-path silenced

Only candidates are found: names from a file, else those of our own facts and words of the
tokenizer.
"""

import sys

from .common import add_model_arguments, load_model, positive, write_json
from .found import checked_subjects, save, tell_fact


def add_arguments(parser) -> None:
    add_model_arguments(parser, positional=True)
    parser.add_argument("--subjects", metavar="FILE",
                        help="whom to look for, one name a line, a hundred or more (default: the "
                             "names of our own facts, and words of the tokenizer)")
    parser.add_argument("--corpus", nargs="+", metavar="FILE",
                        help="text, beside the shipped one, against which small changes show "
                             "better")
    parser.add_argument("--facts", type=positive, default=10, metavar="N",
                        help="how many to name at most (default 10)")
    parser.add_argument("--save-path", metavar="DIR", help="save the edit that silences them")
    parser.add_argument("--report", metavar="FILE.html", help="write a page of it")
    parser.add_argument("--json", metavar="FILE", help="write what was found")


def run(args) -> int:
    from ..evaluation.forensics.audit import audit

    subjects = checked_subjects(args)
    found = audit(load_model(args), subjects, corpus=args.corpus, facts=args.facts,
                  seed=args.seed, progress=sys.stderr.isatty())
    _tell(found)
    write_json(args.json, found.to_json())
    if args.report:
        from ..view.report import audit_report

        audit_report(found, args.report, settings={
            "model": args.model, "subjects": args.subjects or "our own"})
    save(found.edit, args.save_path, "to silence", "silences them")
    return 0


def _tell(found) -> None:
    alarms = {one.layer: one for one in found.layers if one.alarms}
    other = max(found.layers, key=lambda one: one.score)
    print(f"{found.candidates:,} candidates, {len(found.layers)} layers; scores are in spreads "
          "above the median.")
    if not alarms:
        print("Nothing stands out.")
    for one in alarms.values():
        print(f"layer {one.layer} answers {len(one.alarms)} too loudly")
    print(f"Of the others the loudest is {other.loudest}, by {other.score:.1f} at layer "
          f"{other.layer}.")
    for fact in found.facts:
        tell_fact(fact)
    if found.kl is not None:
        print(f"\nSilenced, the model moves by {abs(found.kl):.0e} nats a token on a neutral "
              "text.")
