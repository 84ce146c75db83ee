"""The small files that come with the package: `rome_mlx/data` installed, `data` in a checkout."""

from pathlib import Path


def data_path(*parts: str) -> Path:
    """Path of a shipped data file or directory."""
    installed = Path(__file__).parent / "data"
    root = installed if installed.is_dir() else Path(__file__).parent.parent / "data"
    return root.joinpath(*parts)


def read_lines(name: str) -> list[str]:
    """The lines of a shipped text file that are not empty."""
    return [line for line in data_path(name).read_text("utf-8").splitlines() if line]
