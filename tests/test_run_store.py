"""The one place where a run keeps what it has done."""

import json

import pytest
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.models.identity import Identity
from rome_mlx.storage.run_store import Item, Run

SETTINGS = {"method": "rome", "layers": [4, 5]}
ITEMS = [Item(f"case_{i}", {"id": i}) for i in range(5)]


def squares(calls: list):
    def compute(group, todo):
        calls.append((group, todo))
        return {i: {"square": i * i} for i in todo}

    return compute


def test_what_is_there_is_not_computed_again(tmp_path):
    calls = []
    first = Run(tmp_path, SETTINGS).map(ITEMS[:3], squares(calls))
    again = Run(tmp_path, SETTINGS).map(ITEMS, squares(calls))
    assert again[:3] == first == [{"id": i, "square": i * i} for i in range(3)]
    assert calls == [([i], [i]) for i in range(5)]


def test_items_that_belong_together_are_computed_together(tmp_path):
    calls = []
    run = Run(tmp_path, SETTINGS)
    run.map(ITEMS, squares(calls), together=2)
    (tmp_path / "case_2.json").unlink()
    run.map(ITEMS, squares(calls), together=2)
    assert calls == [([0, 1], [0, 1]), ([2, 3], [2, 3]), ([4], [4]), ([2, 3], [2])]


def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(Run(None, SETTINGS).map(ITEMS, squares([]))) == 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings, said", [
    ({**SETTINGS, "method": "memit"}, 'method "rome", not "memit"'),
    ({**SETTINGS, "layers": (4, 6)}, r"layers \[4, 5\], not \[4, 6\]"),
    ({**SETTINGS, "seed": 1}, "seed null, not 1")])
def test_other_settings_are_refused_by_name_and_value(settings, said, tmp_path):
    Run(tmp_path, SETTINGS)
    with pytest.raises(RomeError, match=said):
        Run(tmp_path, settings)


def test_another_model_is_refused_and_a_run_of_an_earlier_version_too(tmp_path):
    Run(tmp_path, SETTINGS, Identity.of(tiny_model("llama")))
    Run(tmp_path, SETTINGS, Identity.of(tiny_model("llama")))
    with pytest.raises(RomeError, match="another model: this one has other weights"):
        Run(tmp_path, SETTINGS, Identity.of(tiny_model("llama", seed=1)))
    (tmp_path / "run.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(RomeError, match="earlier version: choose a new --output"):
        Run(tmp_path, SETTINGS, Identity.of(tiny_model("llama")))


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damage_is_named_and_a_caches_is_mended(content, tmp_path):
    run = Run(tmp_path, SETTINGS)
    run.map(ITEMS[:1], squares([]))
    (tmp_path / "case_0.json").write_text(content)
    with pytest.raises(RomeError, match=r"case_0\.json is damaged .*; remove it"):
        run.map(ITEMS[:1], squares([]))
    assert run.one(ITEMS[0], lambda: {"square": 0}) == {"id": 0, "square": 0}
    assert run.map(ITEMS[:1], squares([])) == [{"id": 0, "square": 0}]
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RomeError, match=r"run\.json is damaged"):
        Run(tmp_path, SETTINGS)


def test_a_result_that_fails_its_check_is_damaged(tmp_path):
    run = Run(tmp_path, SETTINGS)
    run.map(ITEMS[:1], squares([]))
    with pytest.raises(RomeError, match="is damaged .KeyError"):
        run.map(ITEMS[:1], squares([]), check=lambda result: result["cube"])
