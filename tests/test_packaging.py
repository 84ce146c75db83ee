"""What is built is whole: the wheel works by itself, with its data, and says what it needs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(find_spec("build") is None or find_spec("hatchling") is None,
                                reason="build and hatchling are not installed")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """(sdist, wheel), the wheel built from what is in the sdist."""
    path = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(path),
                    str(ROOT)], check=True, capture_output=True)
    return next(path.glob("*.tar.gz")), next(path.glob("*.whl"))


def test_the_wheel_works_alone_and_finds_its_data(dist, tmp_path):
    with zipfile.ZipFile(dist[1]) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert "rome_mlx/py.typed" in names and "rome_mlx/data/neutral.txt" in names
    view = ROOT / "rome_mlx/view"
    parts = [path for end in ("html", "js", "css") for path in view.rglob(f"*.{end}")]
    assert len(parts) == 10 and {str(path.relative_to(ROOT)) for path in parts} <= set(names)
    assert any(name.startswith("rome_mlx/data/moments/") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "rome_mlx", "rome_mlx_start.py"}
    code = ("import rome_mlx, rome_mlx.storage.places as d; print(rome_mlx.__file__); "
            "print(len(d.read_lines('subjects.txt')), len(list(d.data_path().glob('profile*'))))")
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, check=True)
    where, found = out.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert found == "185 1"


def test_the_metadata_asks_for_what_each_system_needs(dist):
    with zipfile.ZipFile(dist[1]) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith("/METADATA"))
        metadata = wheel.read(name).decode()
        scripts = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    needed = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines()
              if line.startswith("Requires-Dist: ")]
    assert any(n.startswith("mlx>=") and "Darwin" in n for n in needed)
    assert any(n.startswith("mlx-lm[cpu]") and "extra == 'cpu'" in n for n in needed)
    assert any(n.startswith("mlx-lm>=") and "extra" not in n for n in needed)
    assert "rome-mlx = rome_mlx_start:main" in scripts
    assert "License-Expression: MIT" in metadata


def test_the_source_distribution_holds_tests_docs_and_examples(dist):
    with tarfile.open(dist[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in ("tests/tiny.py", "docs/index.md", "mkdocs.yml", "examples/causal_tracing.ipynb",
                 "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile",
                 "data/neutral.txt", "benchmarks/speed.py", "tests/reference/traces.json",
                 "tests/reference/second_moment_layer_8.safetensors"):
        assert name in names, name
