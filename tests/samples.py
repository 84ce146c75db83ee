"""Small things that several tests start from: matrices, a corpus, a model's arrays."""

import sys
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

#: whether a computation done again gives the same bits: a GPU adds in any order
EXACT = mx.default_device() == mx.cpu
#: MLX 0.32 rotates no more than 64 rows of these models' narrow heads on CUDA
needs_many_rows = pytest.mark.skipif(sys.platform == "linux" and not EXACT,
                                     reason="MLX cannot rotate so many narrow rows on CUDA")
needs_exact = pytest.mark.skipif(not EXACT, reason="a GPU adds in any order: other last bits")


def benchmark(name: str):
    """A script of benchmarks/ as a module, which may import its neighbors."""
    directory = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, directory)
    try:
        return import_module(name)
    finally:
        sys.path.remove(directory)


def spd(dim: int, seed: int = 0) -> np.ndarray:
    """A second moment of random keys, (dim, dim) float64."""
    x = np.random.RandomState(seed).randn(4 * dim, dim)
    return x.T @ x / len(x)


def arrays(model) -> dict[str, np.ndarray]:
    """Every parameter of a model by name."""
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def letters(directory: Path, count: int) -> Path:
    """A .txt corpus of so many letters, a token each for the fake tokenizer."""
    path = directory / "corpus.txt"
    path.write_text("".join(np.random.RandomState(0).choice(list("abcdefgh ,."), count)))
    return path


def relative(one, other) -> float:
    """The largest difference, as a share of the largest number."""
    return float(np.abs(one - other).max() / np.abs(other).max())
