"""The documentation builds strictly, and what it names exists."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import recorded

import rome_mlx
from rome_mlx.cli import COMMANDS
from rome_mlx.editing.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _nav() -> list[str]:
    return re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)


@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("material") is None,
                    reason="mkdocs-material is not installed")
def test_the_documentation_builds_strictly(tmp_path):
    if missing := [page for page in _nav() if not (ROOT / "docs" / page).exists()]:
        pytest.skip(f"pages still to be written: {', '.join(missing)}")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet",
                           "--site-dir", str(tmp_path / "site")], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "locate_then_edit" in (tmp_path / "site/api/index.html").read_text("utf-8")


def test_every_public_name_is_in_the_api_page():
    documented = set(re.findall(r"^::: rome_mlx\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M))
    assert documented == set(rome_mlx.__all__)


def test_the_readme_shows_every_method_and_command():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in METHODS:
        assert f"`{name}`" in text
    for name in set(COMMANDS) - {"trace"}:
        assert f"rome-mlx {name}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_names_in_the_docs_are_real(page):
    for name in re.findall(r"\brm\.(\w+)", page.read_text("utf-8")):
        assert hasattr(rome_mlx, name), f"{page.name}: rm.{name}"


def test_the_files_in_the_methods_page_exist():
    for name in re.findall(r"`([\w/]+\.py)`", (ROOT / "docs/method.md").read_text("utf-8")):
        assert (ROOT / "rome_mlx" / name).exists(), name


def test_the_parity_tests_hold_what_is_claimed():
    page = (ROOT / "docs/checked.md").read_text("utf-8")
    table = page.split("## Is it ROME?")[1].split("\n## ")[0]
    claims = [float(claim) for claim in re.findall(r"\| ([\d.]+e-\d+|[\d.]+) \|$", table, re.M)]
    assert claims == list(recorded.CLAIMED.values())
