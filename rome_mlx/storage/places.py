"""Where files are: what comes with the package, and the cache.

Shipped files are in `rome_mlx/data` when installed and in `data` in a checkout.
"""

import os
import sys
from pathlib import Path


def data_path(*parts: str) -> Path:
    """Path of a shipped data file or directory."""
    package = Path(__file__).parent.parent
    root = package / "data" if (package / "data").is_dir() else package.parent / "data"
    return root.joinpath(*parts)


def read_lines(name: str) -> list[str]:
    """The lines of a shipped text file that are not empty."""
    return [line for line in data_path(name).read_text("utf-8").splitlines() if line]


def cache_directory() -> Path:
    """ROME_MLX_CACHE, or the platform's cache directory."""
    if configured := os.environ.get("ROME_MLX_CACHE"):
        return Path(configured)
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/rome-mlx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rome-mlx"
