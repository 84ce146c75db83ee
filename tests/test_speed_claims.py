"""The last lines of benchmarks/speed.py: each claim of docs/checked.md, met or not."""

import re
from pathlib import Path

import pytest
from samples import benchmark

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def speed():
    return benchmark("speed")


def test_every_claim_is_judged_by_the_figure_that_it_is_about(speed):
    works = {"command": [{"name": "edit", "ours_s": 8.01}, {"name": "--version", "ours_s": 0.1}],
             "edit": [{"name": "rome, preset", "ours_s": 1.2, "torch_ratio": None}]}
    found = {claim["words"]: (claim["verdict"], claim["figure"]) for claim in speed._judged(works)}
    assert found == {
        "rome-mlx edit within 8 s, with everything at hand": ("NOT MET", 8.01),
        "--version within 0.3 s": ("met", 0.1),
        "an edit by the default model's preset within 1.5 s": ("met", 1.2),
        "and more than 10 times as fast as the authors' way": ("not measured", None)}


def test_the_page_has_an_aim_for_what_is_claimed(speed):
    page = (ROOT / "docs/checked.md").read_text("utf-8")
    section = page.split("## How fast")[1].split("\n## ")[0]
    aims = re.findall(r"\| ([\d.]+) (?:s|times) \|$", section, re.M)
    assert sorted(aims) == sorted(["8", "4", "0.3", "1.5", "10", "5", "0.8"])
    for work in speed.WORKS:
        assert (ROOT / f"benchmarks/speed_{work}.py").exists()
