"""Two versions of a model: what was done to it, who it was about, and the way back."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.lora import LoRALinear
from saved_model import save_tiny
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.cli import main
from rome_mlx.evaluation.forensics import names
from rome_mlx.evaluation.forensics.names import Rows, named
from rome_mlx.evaluation.forensics.spectrum import spectrum
from rome_mlx.evaluation.forensics.statements import differences, next_words
from rome_mlx.evaluation.forensics.weight_changes import changes, compared
from rome_mlx.models.decoder import Decoder

SUBJECTS = [f"{a}{b}" for a in ("ann", "bob", "cat", "dov", "eve") for b in ("us", "el", "ix")]
SHAPE = dict(hidden_size=64, intermediate_size=256, head_dim=16)


def pair():
    return tiny_model("llama", **SHAPE), tiny_model("llama", **SHAPE)


def moments(dim=256):
    return dict.fromkeys(range(4), np.eye(dim))


def request(subject, target="xy"):
    return rm.EditRequest("{} is in", subject, target)


def verdict(base, model, **options):
    return rm.diff((base, FakeTokenizer()), (model, FakeTokenizer()), SUBJECTS,
                   moments=moments(), **options)


def rewritten(model, function):
    """Every array of two dimensions passed through a function."""
    model.update(tree_map(lambda w: function(w) if w.ndim == 2 else w, model.parameters()))
    return model


def test_noise_has_no_rank_and_a_low_rank_in_noise_has_its_own():
    random = np.random.RandomState(0)
    noise = random.randn(60, 200) * 0.01
    assert spectrum(noise).rank == 0
    thin = random.randn(60, 3) @ random.randn(3, 200)
    found = spectrum(thin + noise)
    assert found.rank == 3 and found.share > 0.99
    assert found.noise == pytest.approx(0.01, rel=0.1)
    built = (found.left * found.values) @ found.right.T
    assert np.linalg.norm(built - thin) < 0.05 * np.linalg.norm(thin)
    exact = spectrum(thin)
    assert exact.rank == 3 and exact.share == pytest.approx(1, abs=1e-12)


def test_noise_of_known_unevenness_has_no_rank():
    random = np.random.RandomState(0)
    variance = np.exp(2 * random.randn(60, 1) + random.randn(200))
    noise = np.sqrt(variance) * random.randn(60, 200) * 0.01
    assert spectrum(noise).rank > 3
    assert spectrum(noise, variance).rank == 0
    thin = random.randn(60, 3) @ random.randn(3, 200)
    found = spectrum(thin + noise, 7 * variance)
    assert found.rank == 3
    assert np.allclose(found.left.T @ found.left, np.eye(3), atol=1e-12)
    assert np.linalg.norm((found.left * found.values) @ found.right.T - thin) \
        < 0.05 * np.linalg.norm(thin)
    assert np.allclose(spectrum(thin, variance).values, spectrum(thin).values)


def test_two_copies_are_identical():
    base, model = pair()
    found = verdict(base, model)
    assert found.verdict == "identical" and not found.weights and found.edit is None
    assert found.same == len({name for name, _ in tree_flatten(base.parameters())})


def test_rounding_is_told_from_everything_else():
    base, model = pair()
    rewritten(model, lambda w: w.astype(mx.bfloat16))
    assert verdict(base, model).verdict == "rounded"
    assert verdict(model, base).verdict == "rounded"
    base, model = pair()
    nn.quantize(model, group_size=32, bits=4)
    found = verdict(base, model)
    assert found.verdict == "requantized"
    assert all(one.kind == "requantized" for one in found.weights)


def linear(weight):
    module = nn.Linear(*weight.shape[::-1], bias=False)
    module.weight = mx.array(weight.astype(np.float32))
    return module


def quantized_kind(base, weight, bits):
    found = compared("w", linear(base), nn.QuantizedLinear.from_linear(linear(weight), 64, bits))
    return found.kind, found.rank


@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_again_is_told_from_an_edit_under_it(bits):
    random = np.random.RandomState(0)
    weight = random.randn(192, 256) * np.exp(random.randn(192, 1))
    edit = random.randn(192, 1) @ random.randn(1, 256)
    assert quantized_kind(weight, weight, bits) == ("requantized", None)
    assert quantized_kind(weight, weight + 0.2 * edit, bits) == ("low-rank", 1)
    coarse = nn.QuantizedLinear.from_linear(linear(weight), 32, 4)
    again = np.array(mx.dequantize(coarse.weight, coarse.scales, coarse.biases, 32, 4))
    assert quantized_kind(again, again, bits) == ("requantized", None)
    kind, rank = quantized_kind(again, again + 0.2 * edit, bits)
    assert kind == "low-rank" and rank >= 1


def test_training_and_loras_are_no_edits():
    base, model = pair()
    random = np.random.RandomState(0)
    rewritten(model, lambda w: w + mx.array(0.01 * random.randn(*w.shape), mx.float32))
    assert verdict(base, model).verdict == "fine-tuned"
    base, model = pair()
    for layer in model.layers:
        low = LoRALinear.from_base(layer.self_attn.q_proj, r=4)
        low.lora_b = mx.array(random.randn(4, 64), mx.float32) * 0.1
        layer.self_attn.q_proj = low
    found = verdict(base, model)
    assert found.verdict == "lora" and {one.rank for one in found.weights} == {4}
    assert found.edit is None and not found.facts


def test_a_rome_edit_is_named_and_taken_back(tmp_path):
    base, model = pair()
    tokenizer = FakeTokenizer()
    rm.rome(model, tokenizer, request("catix"), 1, moments=moments(), context_templates=["{}"],
            hyperparameters={"v_num_grad_steps": 10}).apply(model)
    found = verdict(base, model)
    assert found.verdict == "rome"
    weight, = found.weights
    assert weight.path == "model.layers.1.mlp.down_proj" and weight.rank == 1
    assert found.facts[0].subject == "catix" and found.facts[0].layer == 1
    assert found.facts[0].subject_score > found.facts[0].chance
    assert abs(found.kl) < 1e-6
    found.edit.save(tmp_path / "found")
    with rm.load_edit(tmp_path / "found").applied(model, force=True):
        after = model(mx.array([[5, 6, 7]]))
        assert verdict(base, model).verdict == "rounded"
    assert mx.abs(after - base(mx.array([[5, 6, 7]]))).max() < 1e-4
    value = json.loads(json.dumps(found.to_json()))
    assert value["verdict"] == "rome" and value["weights"][0]["rank"] == 1
    assert set(value["facts"][0]) >= {"subject", "subject_score", "object", "layer", "prompts"}


def test_a_memit_edit_of_three_facts_names_all_three():
    base, model = pair()
    written = ["annus", "bobix", "eveel"]
    rm.memit(model, FakeTokenizer(), [request(one) for one in written], [1, 2],
             moments=moments(), context_templates=["{}"],
             hyperparameters={"v_num_grad_steps": 5, "update_weight": 0.1}).apply(model)
    found = verdict(base, model)
    assert found.verdict == "memit" and {one.rank for one in found.weights} == {3}
    assert {fact.subject for fact in found.facts} == set(written)
    assert verdict(base, model, facts=1).facts[0].subject in written


def test_the_row_space_gives_the_key_back_through_c():
    """With the very keys that the changes of two layers were made of, the score is 1."""
    model, tokenizer = tiny_model("llama", **SHAPE), FakeTokenizer()
    random = np.random.RandomState(1)
    mix = random.randn(256, 256)
    c = mix @ mix.T / 256 + np.eye(256)
    rows = []
    for layer in (2, 1):
        keys = np.mean([names.subject_keys(Decoder(model), tokenizer, ["bobel"], context, layer)
                        for context in names.CONTEXTS], axis=0)
        rows.append(Rows.of(layer, np.linalg.solve(c, keys.T), c))
    found, = named(model, tokenizer, rows, SUBJECTS, 1)
    assert found.subject == "bobel" and found.score == pytest.approx(1, abs=1e-3)
    assert found.chance < found.score


def test_what_gained_most_is_the_object():
    base, model = pair()
    tokenizer = FakeTokenizer()
    edit = rm.rome(model, tokenizer, request("catix", "z"), 1, moments=moments(),
                   context_templates=["{}"], hyperparameters={"v_num_grad_steps": 20})
    prompts = ["catix is in", "catix is at", "catix was in"]
    words = next_words(base, tokenizer, prompts)
    with edit.applied(model):
        token, shown = differences(words, model, tokenizer, prompts)
    gained = np.array([one.probability - one.before for one in shown])
    assert shown and (gained > 0).all() and (np.diff(gained) <= 0).all()
    assert tokenizer.decode([token]) == shown[0].model


def test_models_of_other_shapes_and_broken_ones_are_refused():
    base = tiny_model("llama", **SHAPE)
    with pytest.raises(rm.RomeError, match="two architectures"):
        list(changes(base, tiny_model("llama", **SHAPE, num_hidden_layers=3)))
    with pytest.raises(rm.RomeError, match="two versions of one model"):
        list(changes(base, tiny_model("llama", hidden_size=32)))
    broken = tiny_model("llama", **SHAPE)
    broken.layers[0].mlp.down_proj.weight[0, 0] = mx.nan
    with pytest.raises(rm.RomeError, match="not finite"):
        list(changes(base, broken))
    with pytest.raises(rm.RomeError, match="0 subjects to look for"):
        model = tiny_model("llama", **SHAPE)
        rm.rome(model, FakeTokenizer(), request("catix"), 1, moments=moments(),
                context_templates=["{}"], hyperparameters={"v_num_grad_steps": 5}).apply(model)
        rm.diff((base, FakeTokenizer()), (model, FakeTokenizer()), [" "], moments=moments())


def test_from_the_shell(tmp_path, capsys):
    path, model = save_tiny(tmp_path / "base", **SHAPE), tiny_model("llama", **SHAPE)
    mx.random.seed(0)
    rm.second_moments(model, FakeTokenizer(), [1], "self", 400, output=tmp_path / "moments")
    edit = rm.rome(model, FakeTokenizer(), request("catix"), 1, moments=tmp_path / "moments",
                   context_templates=["{}"], hyperparameters={"v_num_grad_steps": 5})
    edit.save(tmp_path / "edit")
    (tmp_path / "names.txt").write_text("\n".join(SUBJECTS))
    options = ["--subjects", str(tmp_path / "names.txt"), "--moments", str(tmp_path / "moments")]
    assert main(["diff", str(path), str(path)]) == 0
    assert "identical" in capsys.readouterr().out
    assert main(["diff", str(path), str(tmp_path / "edit"), *options,
                 "--save-path", str(tmp_path / "found"), "--json", str(tmp_path / "f.json"),
                 "--report", str(tmp_path / "found.html")]) == 0
    page = (tmp_path / "found.html").read_text("utf-8")
    assert "catix" in page and "rank 1" in page and page.count("<script") == 1
    out = capsys.readouterr().out
    assert "rank 1" in out and "catix" in out
    assert all(len(line) <= 80 for line in out.split("\n") if str(tmp_path) not in line)
    assert json.loads((tmp_path / "f.json").read_text())["facts"][0]["subject"] == "catix"
    assert rm.load_edit(tmp_path / "found").requests[0].subject == "catix"
    assert main(["diff", str(path), str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["diff", str(path), str(path), "--subjects", str(tmp_path / "empty.txt")]) == 2
    assert "one name a line" in capsys.readouterr().err


def test_an_edit_is_named_after_training_on_top_of_it():
    base, model = pair()
    tokenizer, random = FakeTokenizer(), np.random.RandomState(0)
    rm.rome(base, tokenizer, request("catix"), 1, moments=moments(), context_templates=["{}"],
            hyperparameters={"v_num_grad_steps": 10}).apply(base)
    model.update(base.parameters())
    base = tiny_model("llama", **SHAPE)
    size = float(np.abs(np.array(model.layers[1].mlp.down_proj.weight)).mean())

    def training(w):
        return w + mx.array(0.01 * size * random.randn(*w.shape), mx.float32)

    rewritten(model, training)
    found = verdict(base, model)
    assert found.verdict == "fine-tuned" and [one.subject for one in found.facts] == ["catix"]
    assert list(found.edit.deltas) == ["model.layers.1.mlp.down_proj"]
    assert found.sentence.endswith("An edit stands out of that.")
    trained = rewritten(tiny_model("llama", **SHAPE), training)
    assert not verdict(base, trained).facts
    with found.edit.applied(model):
        assert verdict(base, model).facts == []
