"""A subject grown without a list: every fast way against whole runs of the model."""

import json

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten
from saved_model import save_tiny
from tiny import tiny_model
from tokenizers import decoders

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.evaluation.forensics import diff as growing_users
from rome_mlx.evaluation.forensics import growing, names, vocabulary
from rome_mlx.evaluation.forensics.growing import Expected, endings, grown
from rome_mlx.evaluation.forensics.names import Rows
from rome_mlx.evaluation.forensics.vocabulary import Vocabulary
from rome_mlx.models import streaming
from rome_mlx.models.hooks import hooked

SHAPE = dict(hidden_size=64, intermediate_size=256, head_dim=16)
LAYER = 2


def letters():
    """A tokenizer of single characters whose texts are put together again without spaces."""
    tokenizer = FakeTokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    return tokenizer


def attentive():
    """A tiny model in which what stands before weighs as much as in a trained one."""
    model = tiny_model("llama", **SHAPE)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= 30
    return model


def key_of(model, ids) -> np.ndarray:
    """(d_in,) float64 at the last of the ids, in a whole run."""
    seen = []
    with hooked(model.model.layers[LAYER].mlp.down_proj, before=lambda x: seen.append(x) or x):
        model(mx.array([ids]))
    return np.array(seen[0][0, -1], np.float64)


def rows_of(keys: np.ndarray) -> Rows:
    """The row space of a change for keys (n, d_in), with a C that is not the identity."""
    random = np.random.RandomState(3)
    c = np.cov(random.randn(256, 2000) * np.linspace(0.5, 2, 256)[:, None])
    right = np.linalg.svd(np.linalg.solve(c, keys.T), full_matrices=False)[0]
    return Rows.of(LAYER, right, c)


def in_front(tokenizer, word: str) -> list[int]:
    return tokenizer.encode(names.CONTEXTS[0].replace("{}", word))


@pytest.fixture
def short(monkeypatch):
    """Short names, and keys of one context: those of a random model differ in others."""
    monkeypatch.setattr(growing, "_LONGEST", 4)
    monkeypatch.setattr(growing, "CONTEXTS", names.CONTEXTS[:1])


@pytest.fixture
def planted():
    """A model, its tokenizer, a change for the key of one name, and that vocabulary."""
    model, tokenizer = attentive(), letters()
    rows = rows_of(key_of(model, in_front(tokenizer, "Qz"))[None])
    return model, tokenizer, rows, Vocabulary(model, tokenizer, [rows])


def test_the_last_token_is_first_of_the_endings(planted):
    model, tokenizer, _, _ = planted
    before = tokenizer.encode(names.CONTEXTS[0].removesuffix(" {}"))
    token, = tokenizer.encode("q")
    rows = rows_of(key_of(model, [*before, token])[None])
    found = endings(Vocabulary(model, tokenizer, [rows]))
    assert found[0] == (token, pytest.approx(1, abs=1e-4)) and found[1][1] < 0.99
    held = Vocabulary(model, tokenizer, [rows], growing=False)
    assert dict(endings(held)) == pytest.approx(dict(found), abs=1e-6)


def test_fits_are_those_of_whole_runs(planted):
    model, tokenizer, rows, known = planted
    suffixes = [tuple(tokenizer.encode(word)) for word in (" Qz", "z", "qz", " Abc")]
    direct = [np.linalg.norm(rows.coordinates(key_of(model, [*known.ids, *one])[None]))
              for one in suffixes]
    assert known.fits([rows], suffixes) == pytest.approx(direct, abs=1e-5)
    assert direct[0] == pytest.approx(1, abs=1e-5)


def test_estimates_are_exact_for_a_kind_of_one_token(planted, monkeypatch):
    model, tokenizer, rows, _ = planted
    monkeypatch.setattr(vocabulary, "_CENTERS", 10_000)
    known = Vocabulary(model, tokenizer, [rows])
    suffix = tuple(tokenizer.encode("z7"))
    assert len(known._kinds) > 0.5 * len(known.tokens)  # kmeans leaves some kinds empty
    alone = [kind.start for kind in known._kinds if kind.stop - kind.start == 1]
    direct = known.fits([rows], [(int(known.tokens[i]), *suffix) for i in alone])
    assert known.estimates([rows], suffix)[alone] == pytest.approx(direct, abs=1e-5)


def test_estimates_of_a_model_that_is_not_held(planted, monkeypatch):
    _, tokenizer, rows, known = planted
    monkeypatch.setattr(streaming, "HELD", 0)
    model = streaming.streaming(attentive(), attentive)
    suffix = tuple(tokenizer.encode("z7"))
    read = Vocabulary(model, tokenizer, [rows])
    assert read.estimates([rows], suffix) == pytest.approx(known.estimates([rows], suffix),
                                                           abs=1e-6)


def test_estimates_follow_the_slope(planted, monkeypatch):
    """Moved a little along what a token leaves behind, the fit changes as the estimate says."""
    model, tokenizer, rows, _ = planted
    monkeypatch.setattr(vocabulary, "_CENTERS", 1)
    known = Vocabulary(model, tokenizer, [rows])
    suffix, step = list(tokenizer.encode("z7")), 0.02
    estimates = known.estimates([rows], suffix)

    def fit(left):
        arrays = known._behind([one[None] for one in left])
        prefixes = [vocabulary.Prefix(*pair) for pair in zip(arrays[::2], arrays[1::2],
                                                             strict=True)]
        key, = known._keys(prefixes, [suffix], len(known.ids) + 1)
        return np.linalg.norm(rows.coordinates(np.float64(key)))

    means = [left.mean(axis=0) for left in known.left]
    center = fit(means)
    for token in (5, 40, 80):
        ends = [fit([mean + sign * step * (left[token] - mean)
                     for left, mean in zip(known.left, means, strict=True)]) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert estimates[token] - center == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_the_models_expectation_is_that_of_whole_runs(planted):
    model, tokenizer, _, known = planted
    expected = Expected(known)
    word = tokenizer.encode(" Qz")
    logits = np.array(model(mx.array([[*known.ids, *word]])), np.float64)[0, len(known.ids) - 1:]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    steps = [logs[i, token] for i, token in enumerate(word)]
    assert expected.rest([tuple(word)]) == pytest.approx([sum(steps[1:])], abs=1e-4)
    (begun,) = expected.begun([word[1]])
    at = list(expected.starts).index(word[0])
    assert begun[at] == pytest.approx(steps[0] + steps[1], abs=1e-4)


def test_a_name_is_grown(planted, short):
    _, _, rows, known = planted
    found = growing._searched(known, Expected(known), [rows], [np.eye(1)], lambda done: None)
    best = max(found, key=lambda suffix: found[suffix][0])
    assert known.text(best) == " Qz" and found[best][0] == pytest.approx(1, abs=1e-4)


def test_each_subject_takes_its_direction_along(short):
    model, tokenizer = attentive(), letters()
    rows = rows_of(np.stack([key_of(model, in_front(tokenizer, word)) for word in ("Qz", "Xw")]))
    steps = []
    found = grown(Vocabulary(model, tokenizer, [rows]), [rows], 3, steps.append)
    assert {some[0][0] for some in found} == {"Qz", "Xw"}  # the row space has two dimensions
    assert all(some[0][1] == pytest.approx(1, abs=1e-3) for some in found[:1])
    assert steps.count(1) == 2


def test_from_the_shell(tmp_path, capsys, monkeypatch):
    """What was grown is named though no list has it, and stands in the output, the file and the
    page. (Of a random model nothing whole is grown from an edit's key: its contexts differ.)"""
    path, model, tokenizer = save_tiny(tmp_path / "base", **SHAPE), attentive(), letters()
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    tokenizer.save_pretrained(path)
    mx.random.seed(0)
    rm.second_moments(model, tokenizer, [LAYER], "self", 400, output=tmp_path / "moments")
    edit = rm.rome(model, tokenizer, rm.EditRequest("{} is in", "Qz", "xy"), LAYER,
                   moments=tmp_path / "moments", context_templates=["{}"],
                   hyperparameters={"v_num_grad_steps": 5})
    edit.save(tmp_path / "edit")
    command = ["diff", str(path), str(tmp_path / "edit"), "--moments", str(tmp_path / "moments"),
               "--json", str(tmp_path / "f.json"), "--report", str(tmp_path / "found.html")]
    assert main(command) == 0
    assert "may end in" in capsys.readouterr().out
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["grown"] == [] and len(found["endings"]) == 5
    (tmp_path / "names.txt").write_text("annus\nbobel")
    command += ["--grow", "--subjects", str(tmp_path / "names.txt")]
    asked = []
    monkeypatch.setattr(growing_users, "grown", lambda known, rows, most, told: asked.append(
        (len(rows), most)) or [[("Qz", 0.9), ("Az", 0.8)]])
    assert main(command) == 0
    assert asked == [(1, 1)]
    out = capsys.readouterr().out
    assert "0.90  Qz\n" in out and all(len(line) <= 80 for line in out.split("\n"))
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["facts"][0]["subject"] == "Qz" and found["grown"] == [[["Qz", 0.9], ["Az", 0.8]]]
    assert found["endings"] == []
    assert "Names that fit" in (tmp_path / "found.html").read_text("utf-8")
    monkeypatch.setattr(growing_users, "grown", lambda *args: [])
    assert main(command) == 0
    assert "No whole name" in capsys.readouterr().out
