"""Count E[k kᵀ], the second moments of MLP keys that every ROME edit needs. A run that is
stopped goes on where it was, and more tokens can be added later.

  rome-mlx moments --layers 5,8 --corpus wikipedia --tokens 100000 --output moments

Under mlx.launch every rank counts a share:

  mlx.launch -n 2 --backend ring -- rome-mlx moments --layers 5 --corpus wikipedia
"""

import argparse

from .common import add_model_arguments, layer_list, load_model, positive

_STABLE = 0.95


def add_arguments(parser) -> None:
    parser.add_argument("--layers", type=layer_list, required=True, metavar="5,8")
    group = parser.add_argument_group("corpus")
    group.add_argument("--corpus", nargs="+", default=["self"], metavar="NAME|PATH|self",
                       help="hub data set (or wikipedia, wikitext), .txt, .jsonl or .parquet "
                            "files and directories, or self for the model's own samples (default)")
    group.add_argument("--config", help="of a hub data set")
    group.add_argument("--split", default="train", help="of a hub data set (default train)")
    group.add_argument("--column", default="text", help="the one with the text (default text)")
    group.add_argument("--shuffle", action="store_true", help="documents in a seeded order")
    parser.add_argument("--tokens", type=positive, default=100_000, help="(default 100000)")
    parser.add_argument("--row-length", type=positive, default=256,
                        help="tokens a row (default 256)")
    parser.add_argument("--until-stable", type=_cosine, nargs="?", const=_STABLE, metavar="COSINE",
                        help="stop at 1/16, 1/8, 1/4 or 1/2 of the tokens when the halves' "
                             "directions agree far (default 0.95)")
    parser.add_argument("--output", metavar="DIR", default="moments",
                        help="one file a layer; where it resumes (default: moments)")
    add_model_arguments(parser, dry_run=True)


def sizes(args) -> dict:
    return {"layers": args.layers, "corpus_tokens": args.tokens}


def run(args) -> int:
    from ..moments.corpus import Corpus, check_corpus
    from ..moments.estimator import second_moments
    from ..storage.ranks import Ranks

    corpus = Corpus(args.corpus, args.config, args.split, args.column, args.shuffle)
    check_corpus(corpus)
    model, tokenizer = load_model(args)
    moments = second_moments(model, tokenizer, args.layers, corpus, args.tokens,
                             row_length=args.row_length, seed=args.seed, output=args.output,
                             until_stable=args.until_stable, progress=True)
    if Ranks("").rank == 0:
        for layer in moments:
            tell(moments, layer, args.output)
    return 0


def tell(moments, layer: int, output) -> None:
    """What was counted, where it is, and whether it is enough."""
    from ..moments import store

    moment, quality = moments[layer], moments.quality(layer)
    print(f"layer {layer}: {moment.count:,} tokens, {moment.dim} wide → "
          f"{store.layer_path(output, layer)}")
    if quality.settling:
        print("  direction C⁻¹k, cosine between halves: " + ", ".join(
            f"{look['cosine']:.3f} at {look['tokens']:,} tokens" for look in quality.settling))
    print(f"  effective rank {quality.effective_rank:.0f}, condition {quality.condition:.1e}, "
          f"the mean's share {quality.mean_share:.2f}")
    if advice := quality.advice(moment.dim):
        print(f"  {advice}")


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a cosine between 0 and 1")
    return value
