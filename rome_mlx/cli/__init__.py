"""`rome-mlx COMMAND`: one module a command, each with add_arguments(parser) and run(args).

Exit status: 0 done, 1 the work failed, 2 the arguments are wrong.
"""

import argparse
import importlib
import sys

#: command -> (module, what it does)
COMMANDS = {
    "trace": ("trace", "find which states carry a fact (causal tracing)"),
    "locate": ("locate", "average over many facts: the layer that decides in this model"),
    "edit": ("edit", "locate a fact's layer, edit it, verify"),
    "edits": ("edits", "look at saved edits, merge them, write a full model"),
    "moments": ("moments", "count the second moments that ROME needs"),
    "eval": ("eval", "measure a method on CounterFact"),
    "models": ("models", "list the model types that are supported, and why others are not"),
    "import-gguf": ("import_gguf", "turn a GGUF file into an mlx-lm directory"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="rome-mlx", description="Locate and edit facts in language models on MLX.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    for name, (module, summary) in COMMANDS.items():
        modules[name] = importlib.import_module(f".{module}", __name__)
        command = commands.add_parser(
            name, help=summary, description=modules[name].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        modules[name].add_arguments(command)
    args = parser.parse_args(argv)
    from ..errors import RomeError

    try:
        return modules[args.command].run(args) or 0
    except RomeError as error:
        print(f"rome-mlx: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"rome-mlx: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rome-mlx: stopped; what was saved before is whole", file=sys.stderr)
        return 130
