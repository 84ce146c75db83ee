"""Count E[k kᵀ], the second moments of MLP keys that every ROME edit needs. A run that is
stopped goes on where it was, and more tokens can be added later.

  rome-mlx moments --layers 5,8 --corpus wikipedia --tokens 100000 --output moments
"""

import sys

from .common import add_model_arguments, layer_list, load_model, positive


def add_arguments(parser) -> None:
    parser.add_argument("--layers", type=layer_list, required=True, metavar="5,8")
    parser.add_argument("--corpus", default="self", metavar="NAME|PATH|self",
                        help="hub data set, .txt, .jsonl or .parquet files, a directory, or "
                             "self for the model's own samples (default)")
    parser.add_argument("--tokens", type=positive, default=100_000, help="(default 100000)")
    parser.add_argument("--row-length", type=positive, default=256,
                        help="tokens a row (default 256)")
    parser.add_argument("--output", metavar="DIR", default="moments",
                        help="one file a layer; where it resumes (default: moments)")
    add_model_arguments(parser)


def run(args) -> int:
    from ..moments import store
    from ..moments.corpus import check_corpus
    from ..moments.estimator import second_moments

    check_corpus(args.corpus)
    model, tokenizer = load_model(args)
    moments = second_moments(model, tokenizer, args.layers, args.corpus, args.tokens,
                             row_length=args.row_length, seed=args.seed, output=args.output,
                             progress=sys.stderr.isatty())
    for layer, moment in moments.items():
        print(f"layer {layer}: {moment.count:,} tokens, {moment.dim} wide → "
              f"{store.layer_path(args.output, layer)}")
        if moment.count < 10 * moment.dim:
            print(f"  thin: {moment.count / moment.dim:.1f} tokens a dimension; count "
                  f"{10 * moment.dim:,} or more, or edit with a ridge")
    return 0
