import re

import numpy as np
import pytest
from matplotlib.image import imread

from rome_mlx.cli.trace import show
from rome_mlx.errors import RomeError
from rome_mlx.tracing.average import TOKEN_CLASSES, AverageEffects
from rome_mlx.tracing.trace import Trace
from rome_mlx.view import plot

TOKENS = ["The", " E", "iffel", " Tower", " is", " in", "\n", " $1_a^b$"]


def made(kind="hidden", tokens=TOKENS, subject_range=(1, 4), layers=6, severed=None):
    scores = np.full((len(tokens), layers), 0.1, np.float32)
    scores[subject_range[1] - 1, 2] = 0.8
    return Trace("The {} is in $1_a^b$", "Eiffel Tower", kind, severed, 10, 10, "s3", 0.35,
                 " Paris", 7, 0.9, 0.1, list(range(len(tokens))), list(tokens), subject_range,
                 "all", list(range(len(tokens))), scores, scores * 0,
                 scores[subject_range[1] - 1])


@pytest.mark.parametrize("kind, strongest", [("hidden", "blue"), ("mlp", "green"),
                                             ("attn", "red")])
def test_the_restored_cell_is_drawn_in_the_colour_of_its_kind(tmp_path, kind, strongest):
    path = plot.plot_trace(made(kind), tmp_path / "map.png")
    pixels = imread(path)[..., :3].reshape(-1, 3)
    vivid = pixels[np.ptp(pixels, axis=1) > 0.3].mean(axis=0)
    assert ["red", "green", "blue"][int(vivid.argmax())] == strongest


def test_subject_tokens_are_starred_and_others_are_not():
    assert plot._token_names(made()) == ["The", "E*", "iffel*", "Tower*", "is", "in", "\\n",
                                         "$1_a^b$"]


@pytest.mark.parametrize("tokens", [["Rome", " is"], [f" word{i}" for i in range(60)]])
def test_short_and_long_prompts_give_pictures_with_room_for_every_token(tmp_path, tokens):
    path = plot.plot_trace(made(tokens=tokens, subject_range=(0, 1)), tmp_path / "map.png")
    height, width, _ = imread(path).shape
    assert height > 25 * len(tokens) and 500 < width < 1200


def test_three_maps_stand_side_by_side(tmp_path):
    one = imread(plot.plot_trace(made(), tmp_path / "one.png"))
    three = imread(plot.plot_traces([made(k) for k in ("hidden", "mlp", "attn")],
                                    tmp_path / "three.png"))
    assert three.shape[1] == pytest.approx(3 * one.shape[1], abs=3)


def test_severed_bars_need_the_same_fact_and_its_last_subject_token(tmp_path):
    cut = [made(severed=kind) for kind in ("mlp", "attn")]
    assert plot.plot_severed(made(), cut, tmp_path / "bars.png").exists()
    np.testing.assert_allclose(plot.subject_last_effect(made())[2], 0.7, atol=1e-6)
    other = Trace(**{**vars(made()), "subject": "Louvre"})
    with pytest.raises(RomeError, match="'Louvre', not 'Eiffel Tower'"):
        plot.plot_severed(made(), [other], tmp_path / "other.png")
    without = Trace(**{**vars(made()), "positions": [0, 1]})
    with pytest.raises(RomeError, match="last token was not traced"):
        plot.plot_severed(without, cut, tmp_path / "without.png")


def test_average_effects_have_a_panel_for_each_kind(tmp_path):
    record = {"clean_prob": 0.5, "corrupted_prob": 0.1,
              "scores": {kind: {name: [0.1, 0.3, 0.2] for name in TOKEN_CLASSES}
                         for kind in ("mlp", "attn")}}
    widths = []
    for kinds in (["mlp"], ["mlp", "attn"]):
        effects = AverageEffects({"kinds": kinds, "layers": 3, "window": 2}, None, [record] * 3, [])
        widths.append(imread(effects.plot(tmp_path / "average.png")).shape[1])
    assert widths[1] == 2 * widths[0]


@pytest.mark.parametrize("name, says", [("none/map.png", "directory does not exist"),
                                        ("map.xyz", "give a .png")])
def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, name, says):
    with pytest.raises(RomeError, match=says):
        plot.plot_trace(made(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def visible(line):
    return len(re.sub("\x1b\\[[0-9;]*m", "", line))


@pytest.mark.parametrize("layers", [4, 30, 96])
def test_the_terminal_map_has_a_row_a_token_within_80_columns(layers):
    lines = plot.terminal_map(made(layers=layers)).splitlines()
    assert len(lines) == len(TOKENS) + 2
    assert max(map(visible, lines)) <= 80
    assert lines[3].lstrip().startswith("Tower*") and lines[0].lstrip().startswith("The ")


@pytest.mark.parametrize("terminal, plain, drawn", [(True, False, True), (True, True, False),
                                                    (False, False, False)])
def test_the_map_is_printed_in_colour_on_a_terminal_only(monkeypatch, capsys, terminal, plain,
                                                         drawn):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    show(made())
    assert ("\x1b[48;5;" in capsys.readouterr().out) == drawn


def test_the_terminal_map_is_brightest_where_the_answer_returns():
    row = plot.terminal_map(made("mlp")).splitlines()[3]
    shades = [part.partition("m")[0] for part in row.split("\x1b[48;5;")[1:]]
    assert shades[2] != shades[0] and shades.count(shades[0]) == 5
