"""Who a weight answers too loudly, found without the model that was edited."""

import json

import numpy as np
import pytest
from fakes import FakeTokenizer
from saved_model import save_tiny
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.editing.key import Places, keys_by_layer, read_keys
from rome_mlx.evaluation.forensics.loudness import loudest, silenced, whitened
from rome_mlx.models.decoder import Decoder

SHAPE = dict(hidden_size=64, intermediate_size=256, head_dim=16)
SUBJECTS = [a + b + c for a in ("an", "bo", "ca", "do", "ev") for b in "nrst"
            for c in ("us", "el", "ix", "am", "or")]


def test_what_was_written_stands_out_and_silenced_it_does_not():
    random = np.random.RandomState(0)
    weight = random.randn(64, 256).astype(np.float32)
    mix = random.randn(256, 256).astype(np.float32)
    keys = random.randn(300, 256).astype(np.float32) @ mix.T
    directions = whitened(keys, mix @ mix.T, 500)
    assert not loudest(weight, directions, 10, 5)[0]
    for one, other in ((7, 30), (123, 40)):
        u = directions[:, one] / np.linalg.norm(directions[:, one])
        weight += np.outer(random.randn(64), u) * other / 8
    found, rest = loudest(weight, directions, 10, 5)
    assert [one.candidate for one in found] == [123, 7] and rest.score < 10
    assert found[0].times > 2 and found[0].score > found[1].score
    assert len(loudest(weight, directions, 10, 1)[0]) == 1
    a, b = silenced(weight, directions[:, [7, 123]])
    c = mix @ mix.T
    for tokens, ridge in ((500, 1.0), (50_000, 0.02)):
        regular = c + ridge * np.trace(c) / 256 * np.eye(256)
        np.testing.assert_allclose(regular @ whitened(keys, c, tokens), keys.T, atol=1e-2)
    assert np.abs((weight + (a @ b).T) @ directions[:, [7, 123]]).max() < 1e-4
    assert not loudest(weight + (a @ b).T, np.delete(directions, [7, 123], 1), 10, 5)[0]


def test_keys_of_all_layers_are_those_of_each():
    decoder, tokenizer = Decoder(tiny_model("llama", **SHAPE)), FakeTokenizer()
    texts = [("we saw annus", (7, 12)), ("boix lives", (0, 4))]
    ids = tokenizer.encode("the whole text")
    places = [Places.subjects(tokenizer, texts), Places.everywhere(ids)]
    found = dict(keys_by_layer(decoder, places, [1, 3]))
    assert [*found] == [1, 3]
    for layer, (keys, everywhere) in found.items():
        assert np.allclose(keys, read_keys(decoder, tokenizer, texts, layer).keys, atol=1e-6)
        assert everywhere.shape == (len(ids) - 1, 256)


def test_a_model_without_an_edit_is_quiet(tmp_path):
    quiet = rm.audit((tiny_model("llama", **SHAPE), FakeTokenizer()), SUBJECTS)
    assert not quiet.facts and quiet.edit is None and quiet.kl is None
    assert quiet.candidates == len(SUBJECTS) == 100
    assert len(quiet.layers) == 4 and max(one.score for one in quiet.layers) < 10
    (tmp_path / "text.txt").write_text("what a text says " * 600)
    more = rm.audit((tiny_model("llama", **SHAPE), FakeTokenizer()), SUBJECTS,
                    corpus=tmp_path / "text.txt")
    assert more.layers != quiet.layers and not more.facts
    with pytest.raises(rm.RomeError, match="nothing.txt"):
        rm.audit((tiny_model("llama"), FakeTokenizer()), SUBJECTS, corpus=tmp_path / "nothing.txt")


def test_too_few_candidates_are_refused():
    with pytest.raises(rm.RomeError, match="2 subjects to look for; give 100"):
        rm.audit((tiny_model("llama"), FakeTokenizer()), ["ann", "bob", "ann", " "])


def test_a_quiet_model_from_the_shell(tmp_path, capsys):
    path = save_tiny(tmp_path / "model", **SHAPE)
    (tmp_path / "names.txt").write_text("\n".join(SUBJECTS))
    options = ["--subjects", str(tmp_path / "names.txt"), "--json", str(tmp_path / "found.json"),
               "--report", str(tmp_path / "found.html"), "--save-path", str(tmp_path / "silent")]
    assert main(["audit", str(path), *options]) == 0
    out = capsys.readouterr().out
    assert "Nothing stands out." in out and "no edit was saved" in out
    assert all(len(line) <= 80 for line in out.split("\n"))
    page = (tmp_path / "found.html").read_text("utf-8")
    assert "Nothing stands out" in page and page.count("<td data-head") == 4 * 3
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["facts"] == [] and found["candidates"] == 100
    (tmp_path / "names.txt").write_text("\n")
    assert main(["audit", str(path), *options]) == 2
    assert "no line with a name" in capsys.readouterr().err
