"""What several tests share: the default model, read once, and the data of others."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from samples import spd

import rome_mlx


def pytest_configure(config):
    """A cache of this run's own: nothing in it is another version's."""
    if not hasattr(config, "workerinput"):
        config.own_cache = tempfile.TemporaryDirectory(prefix="rome-mlx-tests-")
        os.environ["ROME_MLX_CACHE"] = config.own_cache.name


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        config.own_cache.cleanup()


def pytest_collection_modifyitems(items):
    """What takes longest begins first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def _default_model(dtype):
    try:
        return rome_mlx.load(dtype=dtype)
    except rome_mlx.RomeError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def default_model():
    """(model, tokenizer) in float32. Leave it as it was."""
    return _default_model("float32")


@pytest.fixture(scope="session")
def default_model_4bit():
    """(model, tokenizer) as stored, 4-bit. Leave it as it was."""
    return _default_model("stored")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of data that is not ours to copy, beside the repository."""
    path = Path(os.environ.get("ROME_MLX_SHARED")
                or Path(__file__).resolve().parents[2] / "shared")
    if not path.is_dir():
        pytest.skip(f"no data at {path}; ROME_MLX_SHARED says where it is")
    return path


@pytest.fixture
def system():
    """C, K, R of a small random problem, float64."""
    random = np.random.RandomState(0)
    return spd(12), random.randn(12, 4), random.randn(5, 4)
