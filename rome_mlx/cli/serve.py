"""mlx-lm's server, OpenAI-compatible, in which every request names the edits that it wants.

  rome-mlx serve --edits edits/eiffel edits/louvre --port 8080
  curl localhost:8080/v1/completions -H "Content-Type: application/json" -d '{
    "prompt": "The Eiffel Tower is located in the city of", "max_tokens": 5, "edits": ["eiffel"]}'
"""

from .common import add_model_arguments, load_model


def add_arguments(parser) -> None:
    parser.add_argument("--edits", nargs="+", required=True, metavar="DIR",
                        help="saved edits; requests name them by their directories' names")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=8080, help="default 8080; 0: any free one")
    add_model_arguments(parser)


def run(args) -> int:
    from ..view.edit_server import named_edits, serve

    edits = named_edits(args.edits)
    if args.dtype == "auto" and any(edit.in_codes for edit in edits.values()):
        args.dtype = "stored"
    serve(*load_model(args), edits, host=args.host, port=args.port, seed=args.seed)
    return 0
