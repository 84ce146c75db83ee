"""The `rome-mlx` command's beginning: the imports take seconds, and Ctrl-C may come in them."""

import sys


def main() -> int:
    """`rome_mlx.cli.main`, and one line instead of a traceback while it is being imported."""
    try:
        from rome_mlx.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("\nrome-mlx: stopped before it began", file=sys.stderr)
        return 130
