"""Measure a method on CounterFact: efficacy, generalization and specificity. A run that is
stopped goes on where it was.

  rome-mlx eval counterfact --data counterfact.json --layer 5 --limit 20 --output runs/rome
"""

import sys

from .common import (
    add_model_arguments,
    check_file,
    given_hyperparameters,
    load_model,
    positive,
    write_json,
)

_ROWS = (("score", "S"), ("rewrite_success", "ES"), ("paraphrase_success", "PS"),
         ("neighborhood_success", "NS"), ("neighborhood_known_success", "NS known"),
         ("rewrite_magnitude", "EM"), ("paraphrase_magnitude", "PM"),
         ("neighborhood_magnitude", "NM"))


def add_arguments(parser) -> None:
    parser.add_argument("benchmark", choices=("counterfact",))
    parser.add_argument("--data", required=True, metavar="FILE", help="CounterFact records, JSON")
    parser.add_argument("--method", default="rome",
                        help="an editing method, or none for the unedited model (default rome)")
    parser.add_argument("--layer", type=int, help="(default: of the model's preset)")
    parser.add_argument("--hyperparameters", metavar="published|PRESET|FILE")
    parser.add_argument("--moments", metavar="DIR",
                        help="as rome-mlx moments wrote them (default: shipped or cached)")
    parser.add_argument("--limit", type=positive, help="only the first so many cases")
    parser.add_argument("--where", metavar="relation=P36", help="only cases of one relation")
    parser.add_argument("--output", required=True, metavar="DIR",
                        help="one file a case; where it resumes")
    parser.add_argument("--json", metavar="FILE", help="write the summary")
    add_model_arguments(parser)


def run(args) -> int:
    from ..editing.hyperparameters import hyperparameters
    from ..editing.methods import method
    from ..errors import RomeError
    from ..evaluation.counterfact import read_counterfact
    from ..evaluation.run import evaluate

    given = None
    if args.method != "none":
        method(args.method)
        given = given_hyperparameters(args.hyperparameters, args.method)
        hyperparameters(given, args.method)  # refused before the model is read
    name, _, relation = (args.where or "relation=").partition("=")
    if name != "relation" or (args.where and not relation):
        raise RomeError(f"--where {args.where!r} is not understood; write relation=P36")
    cases = read_counterfact(args.data, args.limit, relation or None)
    check_file(args.json)
    model, tokenizer = load_model(args)
    summary = evaluate(model, tokenizer, cases, output=args.output, layer=args.layer,
                       method=args.method, hyperparameters=given, moments=args.moments,
                       seed=args.seed, progress=sys.stderr.isatty())
    show(summary)
    write_json(args.json, summary)
    return 0


def show(summary: dict) -> None:
    print(f"{summary['method']}, {summary['cases']} cases{'':12}edited{'':16}unedited")
    for name, label in _ROWS:
        if name in summary:
            print(f"  {label:>9}  {_cell(summary[name])}  {_cell(summary['unedited'][name])}")
    if summary["ceiling_share"] is not None:
        print(f"  S is {summary['ceiling_share']:.1f} % of the ceiling: 100, 100 and the unedited "
              "NS")


def _cell(measure: dict) -> str:
    low, high = measure["ci95"]
    return f"{measure['mean']:6.1f} [{low:6.1f}, {high:6.1f}]"
