"""Measure a method on CounterFact, zsRE, QAEdit or MQuAKE: efficacy, generalization and
specificity, and by further measures, which a finished run takes without editing again. A run that
is stopped goes on where it was; under mlx.launch the ranks share the cases out.

  rome-mlx eval counterfact --method rome --limit 20 --output runs/rome
  rome-mlx eval zsre --data zsre.json --method memit --batch 10 --output runs/memit-zsre
  rome-mlx eval compare runs/rome runs/memit --plot methods.png
"""

import sys
from pathlib import Path
from textwrap import wrap

from .common import (
    add_model_arguments,
    add_moments_arguments,
    check_file,
    check_moments_corpus,
    given_hyperparameters,
    load_model,
    positive,
    read_json,
    write_json,
)
from .edit import layer_choice

_COUNTERFACT = """Edit every case, measure rewrite, paraphrases and neighbors, take the edit back.

  rome-mlx eval counterfact --method rome --limit 20 --output runs/rome --report rome.html
"""
_ZSRE = """Edit every question's answer, and measure it by the share of right tokens.

  rome-mlx eval zsre --data zsre.json --method memit --batch 10 --output runs/memit-zsre
"""
_QAEDIT = """Write the right answers to natural questions, and measure them as zsRE's.

  rome-mlx eval qaedit --data qaedit.json --measures wild --output runs/qaedit
"""
_MQUAKE = """Edit, and ask what follows in two to four hops.

  rome-mlx eval mquake --measures hops --output runs/chains
"""
_COMPARE = """Put runs side by side, with paired differences to the first one given.

  rome-mlx eval compare runs/rome runs/memit --plot methods.png
"""


def add_arguments(parser) -> None:
    actions = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    counterfact = actions.add_parser("counterfact", help="ROME's benchmark of counterfactual facts",
                                     description=_COUNTERFACT)
    counterfact.add_argument("--data", metavar="FILE|HUB",
                             help="CounterFact, MultiCounterFact or EasyEdit's variant: a JSON "
                                  "file or a hub data set (default: our own records)")
    zsre = actions.add_parser("zsre", help="question answering, in MEND's format",
                              description=_ZSRE)
    zsre.add_argument("--data", metavar="FILE|HUB", required=True,
                      help="a JSON file or a hub data set")
    qaedit = actions.add_parser("qaedit", help="natural questions, in QAEdit's format",
                                description=_QAEDIT)
    qaedit.add_argument("--data", metavar="FILE|HUB", required=True,
                        help="a JSON file or a hub data set")
    mquake = actions.add_parser("mquake", help="consequences, in MQuAKE's format",
                                description=_MQUAKE)
    mquake.add_argument("--data", metavar="FILE|HUB",
                        help="a JSON file or a hub data set (default: our own chains)")
    for command in (counterfact, zsre, qaedit, mquake):
        _add_run_arguments(command)
    compare = actions.add_parser("compare", help="several runs in one table",
                                 description=_COMPARE)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs")
    for name, what in (("markdown", "the table as Markdown"), ("latex", "the table as LaTeX"),
                       ("plot", "draw S and its parts"),
                       ("json", "write the summaries and the differences")):
        compare.add_argument(f"--{name}", metavar="FILE", help=what)


def _add_run_arguments(parser) -> None:
    parser.add_argument("--method", default="rome",
                        help="an editing method, none for the unedited model, or context: the "
                             "fact is said beforehand and nothing is edited (default rome)")
    parser.add_argument("--measures", metavar="NAME,...", default="",
                        help="further measures: wild (free text to its end), distractor, "
                             "relations, negation, reversal, hops (of mquake), ability")
    parser.add_argument("--layer", type=layer_choice, default="auto",
                        help="a number, or auto (default): what calibration or a preset says of "
                             "this model, else the layer that decides in it, else by depth")
    parser.add_argument("--hyperparameters", metavar="published|PRESET|FILE")
    add_moments_arguments(parser)
    parser.add_argument("--sequential", type=positive, default=1, metavar="N",
                        help="N edits follow one another before their cases are measured")
    parser.add_argument("--batch", type=positive, default=1, metavar="N",
                        help="N cases are written by one edit")
    parser.add_argument("--limit", type=positive, help="only the first so many cases")
    parser.add_argument("--where", metavar="relation=P36", help="only cases of one relation")
    parser.add_argument("--skip-bad", action="store_true",
                        help="name bad records and go on without them (default: refuse)")
    parser.add_argument("--generations", type=int, default=10, metavar="N",
                        help="measure free text (GE, RS) of the first N cases, 0 for none; 100 "
                             "tokens for each of their prompts (default 10)")
    parser.add_argument("--references", metavar="DIR",
                        help="the authors' attribute_snippets.json, idf.npy and tfidf_vocab.json, "
                             "for RS")
    parser.add_argument("--output", required=True, metavar="DIR",
                        help="one file a case; where it resumes")
    parser.add_argument("--report", metavar="FILE.html", help="write a page of the measures")
    parser.add_argument("--json", metavar="FILE", help="write the summary")
    add_model_arguments(parser, dry_run=True)


def sizes(args) -> dict:
    from ..errors import RomeError

    if args.benchmark == "compare":
        raise RomeError("eval compare reads finished runs and no model; leave out --dry-run")
    return {"method": args.method, "cases": args.limit or 150, "moments": args.moments,
            "layers": args.layer, "measures": _measures(args)}


def _measures(args) -> list[str]:
    return [name for name in args.measures.split(",") if name]


def run(args) -> int:
    return _compare(args) if args.benchmark == "compare" else _run(args)


def _run(args) -> int:
    from ..editing.layer_choice import LayerChoice, profile_decision
    from ..editing.methods import find_method
    from ..errors import RomeError
    from ..evaluation.case_edits import UNEDITED
    from ..evaluation.counterfact import read_counterfact
    from ..evaluation.generation import References
    from ..evaluation.mquake import read_mquake
    from ..evaluation.questions import read_qaedit, read_zsre
    from ..evaluation.run import evaluate
    from ..models.decoder import Decoder
    from ..models.loading import describe
    from ..moments.lookup import moments_told

    given = None
    if args.method not in UNEDITED:
        editor = find_method(args.method)
        given = given_hyperparameters(args.hyperparameters, args.method)
        editor.resolve(given)  # refused before the model is read
    name, _, relation = (args.where or "relation=").partition("=")
    if name != "relation" or (args.where and not relation):
        raise RomeError(f"--where {args.where!r} is not understood; write relation=P36")
    if args.generations < 0:
        raise RomeError(f"--generations is {args.generations}; give 0 or more")
    read = {"counterfact": read_counterfact, "zsre": read_zsre, "qaedit": read_qaedit,
            "mquake": read_mquake}[args.benchmark]
    skipped = [] if args.skip_bad else None
    cases = read(args.data, args.limit, relation or None, skipped)
    for bad in skipped or ():
        print(f"rome-mlx: record {bad['record']} left out: {bad['reason']}", file=sys.stderr)
    references = References(args.references) if args.references else None
    check_moments_corpus(args)
    check_file(args.json)
    check_file(args.report)
    import mlx.core as mx

    from ..view.layers import layers_told

    model, tokenizer = load_model(args)
    summary = evaluate(
        model, tokenizer, cases, output=args.output, layer=args.layer, method=args.method,
        hyperparameters=given, moments=args.moments, corpus=args.corpus, seed=args.seed,
        sequential=args.sequential, batch=args.batch, generations=args.generations,
        references=references, measures=_measures(args),
        progress=sys.stderr.isatty())
    if mx.distributed.init().rank() == 0:
        print(layers_told(profile_decision(Decoder(model)), LayerChoice(**summary["layer_choice"])))
        if told := moments_told(read_json(Path(args.output) / "run.json")["moments"]):
            print(f"{told}.")
        show(summary)
        write_json(args.json, summary | ({} if skipped is None else {"skipped": skipped}))
        if args.report is not None:
            _report(args, describe(model, tokenizer))
    return 0


def _report(args, model: dict) -> None:
    from ..view.report import benchmark_report

    settings = {"model": model["path"], "computed in": model["dtype"],
                "layers": read_json(Path(args.output) / "run.json")["layers"],
                **{name: value for name in ("benchmark", "data", "method", "moments",
                                            "hyperparameters", "limit", "seed", "output")
                   if (value := getattr(args, name, None)) is not None}}
    benchmark_report(args.output, args.report, settings=settings)


def show(summary: dict) -> None:
    """Print every measure, edited and unedited."""
    from ..evaluation.measures import MEASURES, in_parts
    from ..view.compare import notes

    head = f"{summary['method']}, {summary['cases']} cases"
    print(f"{head:<22}{'edited':<29}unedited")
    parts = in_parts(name for name in MEASURES if name in summary)
    for title, names in parts.items():
        if len(parts) > 1:
            print(title)
        for name in names:
            edited, unedited = (_cell(name, measures.get(name), summary["cases"])
                                for measures in (summary, summary["unedited"]))
            print(f"  {MEASURES[name].label:>11}  {edited:<35} {unedited}".rstrip())
    if "rewrite_success" in summary:
        print("  ES rewrites, PS paraphrases, NS neighbors whose right answer is likelier, %;\n"
              "  S their harmonic mean; EM, PM, NM by how much; the rest: docs, Results")
    for line in (line for note in notes([summary]) for line in wrap(note, 78)):
        print(f"  {line}")
    if summary["ceiling_share"] is not None:
        print(f"  S is {summary['ceiling_share']:.1f} % of that of an edit that writes all and "
              "leaves NS as it was")


def _cell(name: str, value: dict | None, cases: int) -> str:
    from ..view.compare import interval, number

    if value is None:
        return ""
    count = "" if value["n"] == cases else f" n {value['n']}"
    return f"{number(name, value['mean']):>6} {interval(name, value)}{count}"


def _compare(args) -> int:
    from ..storage.files import write_whole
    from ..view.compare import latex, markdown, plot, read_run, terminal, to_json

    for path in (args.markdown, args.latex, args.plot, args.json):
        check_file(path)
    runs = [read_run(path) for path in args.runs]
    print(terminal(runs))
    for path, table in ((args.markdown, markdown), (args.latex, latex)):
        if path:
            write_whole(path, table(runs) + "\n")
    if args.plot:
        plot(runs, args.plot)
    write_json(args.json, to_json(runs))
    return 0
