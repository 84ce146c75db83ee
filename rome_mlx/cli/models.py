"""List the model types of the installed mlx-lm: supported, with where the MLP's output projection
is and what sets the type apart, or refused, with the reason.

  rome-mlx models
"""

import shutil
import sys
import textwrap


def add_arguments(parser) -> None:
    """None: the table is one."""


def run(args) -> int:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines():
        print(line if width is None else textwrap.fill(line, width, subsequent_indent=" " * 36))
    return 0


def lines() -> list[str]:
    """A line for every model type of the installed mlx-lm, supported ones first."""
    from ..models.architectures import SUPPORTED, installed_types

    kinds = sorted(installed_types(), key=lambda kind: (kind not in SUPPORTED, kind.lower()))
    return [f"{kind:<23} {'supported' if kind in SUPPORTED else 'refused':<11} {_about(kind)}"
            for kind in kinds]


def _about(kind: str) -> str:
    from mlx_lm.utils import MODEL_REMAPPING

    from ..models.architectures import SUPPORTED, Wrapper
    from ..models.refused import NO_ROW, REFUSED

    row = SUPPORTED.get(kind)
    if row is None:
        return REFUSED.get(kind, NO_ROW)
    where = [] if isinstance(row, Wrapper) else [f"{row.layers}.N.{row.down}"]
    others = [name for name, stem in MODEL_REMAPPING.items() if stem == kind]
    also = [f"also {', '.join(others)}"] if others else []
    return "; ".join([*where, *row.traits, *also])
