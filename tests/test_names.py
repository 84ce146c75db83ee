"""`import rome_mlx` costs little, and every public name is there when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rome_mlx


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip()


def test_importing_the_package_imports_neither_mlx_lm_nor_transformers():
    code = "import sys, rome_mlx; print(sorted({'mlx_lm', 'transformers'} & sys.modules.keys()))"
    assert run(code) == "[]"


def test_every_public_name_is_there_and_of_its_own_name():
    for name in rome_mlx.__all__:
        assert getattr(rome_mlx, name).__name__ == name
    assert set(rome_mlx.__all__) <= set(dir(rome_mlx))


@pytest.mark.parametrize("code", [
    "import rome_mlx as rm; print(rm.rome.__name__)",
    "from rome_mlx import rome; print(rome.__name__)",
    "from rome_mlx import *; print(rome.__name__)",
    "import rome_mlx.editing.methods.rome, rome_mlx; print(rome_mlx.rome.__name__)"])
def test_names_are_found_however_they_are_imported(code):
    assert run(code) == "rome"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rome_mlx' has no attribute 'roma'"):
        _ = rome_mlx.roma


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(rome_mlx.__file__).read_text("utf-8"))
    typed = {alias.asname: node.module for node in ast.walk(tree)
             if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname}
    assert typed == rome_mlx._MODULES
