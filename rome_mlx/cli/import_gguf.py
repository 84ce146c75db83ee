"""Turn a GGUF file into an ordinary mlx-lm directory.

  rome-mlx import-gguf model.gguf --output model
"""

import os
from pathlib import Path


def add_arguments(parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .gguf file")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory")


def run(args) -> int:
    from ..errors import RomeError
    from ..models.loading import import_gguf

    target = Path(args.output)
    if target.exists() and (not target.is_dir() or os.listdir(target)):
        raise RomeError(f"{args.output!r} is there already; choose a new directory")
    import_gguf(args.file, target)
    size = sum(f.stat().st_size for f in target.iterdir())
    print(f"{target}: {size / 1e6:.0f} MB; load it with mlx_lm.load or --model {target}")
    return 0
