"""`rome-mlx COMMAND`: one module a command, each with add_arguments(parser) and run(args).

Exit status: 0 done, 1 the work failed, 2 the arguments are wrong.
"""

import argparse
import importlib
import os
import sys
from importlib.metadata import version

from ..errors import RomeError

#: command -> (module, what it does)
COMMANDS = {
    "trace": ("trace", "find which states carry a fact (causal tracing)"),
    "locate": ("locate", "average over many facts: the layer that decides in this model"),
    "calibrate": ("calibrate", "find the layer and hyperparameters of a model"),
    "edit": ("edit", "locate a fact's layer, edit it, verify"),
    "edits": ("edits", "look at saved edits, merge, fuse, share and verify them"),
    "serve": ("serve", "mlx-lm's server, in which requests name the edits that they want"),
    "moments": ("moments", "count the second moments that ROME needs"),
    "eval": ("eval", "measure a method on CounterFact, zsRE, QAEdit or MQuAKE"),
    "diff": ("diff", "what was done to a model since its base, and the way back"),
    "audit": ("audit", "whether something was written into a model, without its base"),
    "explore": ("explore", "trace, edit and ask in the browser, on this machine"),
    "models": ("models", "list the model types that are supported, and why others are not"),
    "import-gguf": ("import_gguf", "turn a GGUF file into an mlx-lm directory"),
    "doctor": ("doctor", "which device, BLAS, model and moments there are, and what is missing"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _planned(args, chosen) -> None:
    """Print what the command will take; raises RomeError where it does not fit."""
    from ..planning import plan

    found = plan(args.model, args.command, dtype=args.dtype,
                 trust_remote_code=args.trust_remote_code, **chosen.sizes(args))
    print(found)
    found.check()


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="rome-mlx",
                    description="Locate and edit facts in language models on MLX.\n\n"
                                "  rome-mlx doctor\n"
                                '  rome-mlx edit --prompt "{} is located in the city of" \\\n'
                                '      --subject "The Eiffel Tower" --target-new Rome')
    parser.add_argument("--version", action="version", version=f"rome-mlx {version('rome-mlx')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    word = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == word:  # the others need not be imported
            chosen = importlib.import_module(f".{module}", __name__)
            command.description = chosen.__doc__
            chosen.add_arguments(command)
    args = parser.parse_args(argv)

    try:
        status = (_planned(args, chosen) if getattr(args, "dry_run", False)
                  else chosen.run(args)) or 0
        sys.stdout.flush()
        return status
    except RomeError as error:
        print(f"rome-mlx: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"rome-mlx: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrome-mlx: stopped; what was saved before is whole", file=sys.stderr)
        return 130
