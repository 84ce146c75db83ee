"""The table of architectures as people see it. Run as a script, it writes docs/models.md's list."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
from tiny import tiny_model

from rome_mlx.cli import main
from rome_mlx.editing.layer_choice import LayerChoice, _dense
from rome_mlx.errors import RomeError
from rome_mlx.models.architectures import (
    ARCHITECTURES,
    SUPPORTED,
    WRAPPERS,
    check_type,
    installed_types,
)
from rome_mlx.models.decoder import Decoder
from rome_mlx.models.refused import REFUSED

PAGE = Path(__file__).resolve().parents[1] / "docs/models.md"
BLOCK = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)


def listed() -> str:
    """What stands between the page's marks, from the table."""
    groups = {
        "Dense": [kind for kind, row in ARCHITECTURES.items() if not row.mixture],
        "Mixtures of experts, in their dense layers": [
            kind for kind, row in ARCHITECTURES.items() if row.mixture],
        "Text models inside": list(WRAPPERS)}
    return "\n".join(textwrap.fill(f"{name}: {', '.join(sorted(kinds, key=str.lower))}.", 99,
                                   break_on_hyphens=False) + "\n"
                     for name, kinds in groups.items())


def with_list(text: str) -> str:
    return BLOCK.sub(lambda m: m[1] + listed() + m[2], text)


def test_the_pages_list_is_the_tables():
    text = PAGE.read_text("utf-8")
    assert BLOCK.search(text)
    assert text == with_list(text), "write it: python tests/test_models.py"


def test_models_prints_a_line_for_every_model_file_of_mlx_lm(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == installed_types()
    assert len(lines) == len(installed_types())
    for line in lines:
        kind, verdict, about = line.split(maxsplit=2)
        assert verdict == ("supported" if kind in SUPPORTED else "refused")
        assert about == REFUSED[kind] if verdict == "refused" else len(about) > 10


def test_models_shows_traits_paths_and_other_names(capsys):
    main(["models"])
    out = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "model.h.N.mlp.fc_out" in out["gptj"] and "parallel" in out["gptj"]
    assert "learned positions" in out["gpt2"] and "residual multiplier" in out["granite"]
    assert "mistral" in out["llama"] and "language_model" in out["gemma3"]


def test_models_wraps_only_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: type("Size", (), {"columns": 80}))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > len(installed_types()) and max(map(len, lines)) <= 80


def test_an_unsupported_type_says_why_and_what_is_supported():
    with pytest.raises(RomeError, match=r"'mamba2' is not supported: .*state-space.*: .*olmo2"):
        check_type("mamba2")


def test_a_chosen_layer_that_is_a_mixture_gives_way_to_the_nearest_dense_one():
    decoder = Decoder(tiny_model("deepseek"))
    moved = _dense(decoder, LayerChoice(3, "trace", "clear"))
    assert moved.layer == 1 and "layer 3 is a mixture" in moved.reason and moved.how == "trace"
    kept = LayerChoice(0, "trace", "clear")
    assert _dense(decoder, kept) == kept


if __name__ == "__main__":
    PAGE.write_text(with_list(PAGE.read_text("utf-8")), "utf-8")
