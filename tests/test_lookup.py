"""An editor finds its model's own moments, says which, and makes what is missing."""

import hashlib
import json
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from fakes import FakeTokenizer
from mlx_lm.tuner.utils import linear_to_lora_layers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from samples import arrays, letters, relative, spd
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing.lowrank import LowRank
from rome_mlx.errors import RomeError
from rome_mlx.evaluation.counterfact import read_counterfact
from rome_mlx.evaluation.run import evaluate
from rome_mlx.models.applied import edits_of, without_edits
from rome_mlx.models.identity import Identity
from rome_mlx.moments import corpus, lookup, store
from rome_mlx.moments.estimator import second_moments
from rome_mlx.moments.progress import Progress

TOKENIZER = FakeTokenizer()
REQUEST = rm.EditRequest("{} was", "a subject", "b")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def text(tmp_path):
    return letters(tmp_path, 600)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A cache of its own, and few own samples."""
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lookup, "enough_tokens", lambda about: 480)
    monkeypatch.setattr(corpus, "BLOCK", 2)
    lookup._say_once.cache_clear()
    return tmp_path / "cache/moments"


def an_edit(layer: int, seed: int = 0, path="mlp.down_proj", shape=(48, 32)) -> rm.Edit:
    random = np.random.RandomState(seed)
    return rm.Edit("rome", [REQUEST], {f"model.layers.{layer}.{path}": LowRank(
        0.3 * random.randn(shape[0], 1), random.randn(1, shape[1]))}, [layer])


def test_given_moments_are_taken_as_they_are(model, text):
    moments = second_moments(model, TOKENIZER, [1], text, 64, row_length=16)
    expected = moments[1].value()
    assert np.array_equal(lookup.moment_matrix(model, TOKENIZER, 1, moments), expected)
    assert np.array_equal(lookup.moment_matrix(model, TOKENIZER, 1, {1: expected}), expected)


def test_given_moments_of_something_else_are_refused(model, text):
    moments = second_moments(model, TOKENIZER, [1], text, 64, row_length=16)
    with pytest.raises(RomeError, match=r"of layers \[1\], not 2; .*rome-mlx moments --layers 2"):
        lookup.moment_matrix(model, TOKENIZER, 2, moments)
    with pytest.raises(RomeError, match="made for another model"):
        lookup.moment_matrix(tiny_model("llama", seed=1), TOKENIZER, 1, moments)
    with pytest.raises(RomeError, match=r"shape \(5, 5\).* 48 wide"):
        lookup.moment_matrix(model, TOKENIZER, 1, {1: np.eye(5)})
    with pytest.raises(RomeError, match="layer 99 does not exist"):
        lookup.moment_matrix(model, TOKENIZER, 99, moments)


def test_without_moments_the_command_that_makes_them_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path))
    with pytest.raises(RomeError, match="rome-mlx moments --layers 2 --corpus self"):
        lookup.moment_matrix(model, TOKENIZER, 2)


# whose they are

def test_a_file_says_its_models_identity(model, text, tmp_path):
    second_moments(model, TOKENIZER, [1], text, 64, row_length=16, output=tmp_path)
    about = store.read_about(store.layer_path(tmp_path, 1))
    assert Identity.from_json(about["identity"]).difference(Identity.of(model)) is None
    assert about["finished"] is True


def attention_tuned():
    model = tiny_model("llama")
    projection = model.layers[2].self_attn.q_proj
    projection.weight = projection.weight + 0.01 * mx.random.normal(
        projection.weight.shape, key=mx.random.key(0))
    return model


def adapted():
    model = tiny_model("llama")
    linear_to_lora_layers(model, 4, {"rank": 2, "scale": 1.0, "dropout": 0.0,
                                     "keys": ["self_attn.q_proj"]})
    model.eval()
    return model


@pytest.mark.parametrize("other, words", [(attention_tuned, "other weights"),
                                          (adapted, "no adapter")])
def test_moments_of_a_model_that_differs_elsewhere_are_refused(other, words, model, text,
                                                               tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path))
    output, other = tmp_path / "moments/mine", other()
    options = dict(corpus=text, row_length=16)
    moments = second_moments(model, TOKENIZER, [1], tokens=64, output=output, **options)
    for given in (moments, output):
        with pytest.raises(RomeError, match=f"made for another model .*{words}"):
            lookup.moment_matrix(other, TOKENIZER, 1, given)
    with pytest.raises(RomeError, match="no second moments for layer 1"):
        lookup.moment_matrix(other, TOKENIZER, 1)
    with pytest.raises(RomeError, match=f"made for another model .*{words}"):
        second_moments(other, TOKENIZER, [1], tokens=128, output=output, **options)


def test_moments_of_a_float_model_serve_its_4_bit_copy_and_back(text):
    bits = tiny_model("llama", intermediate_size=64)
    nn.quantize(bits, group_size=32, bits=4)
    plain = tiny_model("llama", intermediate_size=64)
    for one, other in zip(plain.layers, bits.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            _dequantize(one.self_attn, other.self_attn, name)
        for name in ("gate_proj", "up_proj", "down_proj"):
            _dequantize(one.mlp, other.mlp, name)
    _dequantize(plain.model, bits.model, "embed_tokens")
    if "lm_head" in plain:
        _dequantize(plain, bits, "lm_head")
    for one, other in ((plain, bits), (bits, plain)):
        moments = second_moments(one, TOKENIZER, [1], text, 64, row_length=16)
        lookup.moment_matrix(other, TOKENIZER, 1, moments)


def _dequantize(one, other, name: str) -> None:
    packed = other[name]
    one[name].weight = mx.dequantize(packed.weight, packed.scales, packed.biases,
                                     packed.group_size, packed.bits)


def test_files_without_an_identity_are_checked_by_fingerprint(model, text, tmp_path):
    second_moments(model, TOKENIZER, [1], text, 64, row_length=16, output=tmp_path)
    path = store.layer_path(tmp_path, 1)
    about = {name: value for name, value in store.read_about(path).items()
             if name not in ("identity", "begins_with", "finished")}
    save_file(load_file(path), path, {name: json.dumps(value) for name, value in {
        **about, "format": "rome-mlx moments 1"}.items()})
    lookup.moment_matrix(model, TOKENIZER, 1, tmp_path)
    with pytest.raises(RomeError, match="made for another model"):
        lookup.moment_matrix(tiny_model("llama", seed=1), TOKENIZER, 1, tmp_path)


def test_an_unusable_identity_is_damage(model, text, tmp_path):
    moments = second_moments(model, TOKENIZER, [1], text, 64, row_length=16)
    moments.about[1]["identity"] = {"base": [1.0], "adapters": None, "edits": []}
    store.write_all(tmp_path, moments)
    with pytest.raises(RomeError, match=r"layer-1\.safetensors is damaged"):
        lookup.moment_matrix(model, TOKENIZER, 1, tmp_path)


# edits that are applied

@pytest.mark.parametrize("bits", ["float", "4-bit"])
def test_edits_are_set_aside_inside_and_are_back_after_bit_for_bit(bits):
    model, tokens = tiny_model("llama", intermediate_size=64), mx.array([[1, 2, 3]])
    if bits == "4-bit":
        nn.quantize(model, group_size=32, bits=4)
    plain, edits = np.array(model(tokens)), [an_edit(1, i, shape=(64, 32)) for i in (0, 1)]
    edits.append(an_edit(2, shape=(64, 32)))
    for edit in edits:
        edit.apply(model)
    edited, before = np.array(model(tokens)), arrays(model)
    with pytest.raises(ZeroDivisionError), without_edits(model):
        assert edits_of(model) == [] and np.array_equal(np.array(model(tokens)), plain)
        raise ZeroDivisionError
    assert edits_of(model) == edits and np.array_equal(np.array(model(tokens)), edited)
    after = arrays(model)
    assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n])
                                                 for n in before)


def test_moments_missing_while_an_edit_is_applied_are_the_base_models(model, small):
    edit = an_edit(0)
    with edit.applied(model):
        found = lookup.ensure_moments(model, TOKENIZER, [2])
        assert edits_of(model) == [edit]
        matrix = found.matrix(2)
    base = second_moments(model, TOKENIZER, [2], "self", 480)[2].value()
    assert relative(matrix, base) < 1e-6
    assert np.array_equal(lookup.moment_matrix(model, TOKENIZER, 2), matrix)


def test_moments_counted_on_the_edited_model_serve_it_and_not_the_unedited_one(
        model, text, tmp_path):
    edit, options = an_edit(0), dict(corpus=text, row_length=16, output=tmp_path / "edited")
    with edit.applied(model):
        moments = second_moments(model, TOKENIZER, [2], tokens=64, **options)
        for given in (moments, tmp_path / "edited"):
            lookup.moment_matrix(model, TOKENIZER, 2, given)
    assert moments.about[2]["identity"]["edits"] == [edit.digest]
    for given in (moments, tmp_path / "edited"):
        with pytest.raises(RomeError, match="counted with 1 edits applied.*revert the edits and "
                                            "count again"):
            lookup.moment_matrix(model, TOKENIZER, 2, given)
    with pytest.raises(RomeError, match="counted with 1 edits applied"):
        second_moments(model, TOKENIZER, [2], tokens=128, **options)


def test_unedited_moments_are_not_extended_on_the_edited_model(model, text, tmp_path):
    options = dict(corpus=text, row_length=16, output=tmp_path)
    second_moments(model, TOKENIZER, [2], tokens=64, **options)
    with an_edit(0).applied(model), pytest.raises(RomeError, match="0 edits applied"):
        second_moments(model, TOKENIZER, [2], tokens=128, **options)


# which C was used

def test_a_file_and_what_was_read_from_it_have_one_hash(model, text, tmp_path):
    moments = second_moments(model, TOKENIZER, [1], text, 64, row_length=16, output=tmp_path)
    path = store.layer_path(tmp_path, 1)
    with safe_open(str(path), "numpy") as file:
        expected = hashlib.sha256(file.get_tensor("upper").tobytes()).hexdigest()
    read, about = store.read(path)
    for given in (moments, tmp_path, rm.Moments({1: read}, {1: about})):
        assert lookup.find_moments(model, TOKENIZER, [1], given).used == {
            1: {"corpus": str(text), "tokens": 64, "sha256": expected}}
    array = read.value()
    assert lookup.find_moments(model, TOKENIZER, [1], {1: array}).used == {
        1: {"corpus": "given", "tokens": None,
            "sha256": hashlib.sha256(array.tobytes()).hexdigest()}}


@pytest.mark.parametrize("method, where", [(rm.rome, 1), (rm.memit, [1, 2])])
def test_an_edit_says_which_c_it_used(method, where, model, text, tmp_path):
    layers = [where] if isinstance(where, int) else where
    second_moments(model, TOKENIZER, layers, text, 512, row_length=16, output=tmp_path / "c")
    edit = method(model, TOKENIZER, REQUEST, where, moments=tmp_path / "c",
                  context_templates=["{}"], hyperparameters={"v_num_grad_steps": 2})
    used = lookup.find_moments(model, TOKENIZER, layers, tmp_path / "c").used
    assert edit.moments == used and used[1]["tokens"] == 512
    edit.save(tmp_path / "edit")
    assert rm.load_edit(tmp_path / "edit").moments == used


def test_a_run_says_which_c_it_used_and_does_not_go_on_with_another(model, text, tmp_path):
    record = {"case_id": 1, "requested_rewrite": {
        "prompt": "{} is in", "subject": "s", "target_new": {"str": "xy"},
        "target_true": {"str": "z"}}, "paraphrase_prompts": ["a s at"],
        "neighborhood_prompts": ["t is in"]}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    cases = read_counterfact(tmp_path / "data.json")
    options = dict(output=tmp_path / "run", layer=1, templates=["{}"],
                   hyperparameters={"v_num_grad_steps": 2})
    one = second_moments(model, TOKENIZER, [1], text, 512, row_length=16)
    evaluate(model, TOKENIZER, cases, moments=one, **options)
    settings = json.loads((tmp_path / "run/run.json").read_text())
    assert settings["moments"] == {"1": lookup.find_moments(model, TOKENIZER, [1], one).used[1]}
    evaluate(model, TOKENIZER, cases, moments=one, **options)
    other = second_moments(model, TOKENIZER, [1], text, 528, row_length=16)
    with pytest.raises(RomeError, match="moments"):
        evaluate(model, TOKENIZER, cases, moments=other, **options)
    unedited = {**options, "output": tmp_path / "none", "hyperparameters": None}
    evaluate(model, TOKENIZER, cases, method="none", **unedited)
    assert json.loads((tmp_path / "none/run.json").read_text())["moments"] is None


def test_of_several_files_the_one_of_most_tokens_is_taken_then_the_first_by_path(
        model, text, small):
    for name, tokens, row_length in (("c", 64, 16), ("b", 128, 16), ("a", 128, 32)):
        second_moments(model, TOKENIZER, [1], text, tokens, row_length=row_length,
                       output=small / name)
    about = lookup.find_moments(model, TOKENIZER, [1]).about[1]
    assert store.find(about) == store.layer_path(small / "a", 1)


def test_a_count_that_was_broken_off_is_passed_over_and_finished(model, small, monkeypatch):
    monkeypatch.setattr(lookup, "enough_tokens", lambda about: 5000)
    with monkeypatch.context() as patch:
        patch.setattr("rome_mlx.moments.estimator._CHECKPOINT_SECONDS", -1)
        add, left = second_moments.__globals__["_add_rows"], [2]

        def failing(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            add(*arguments)

        patch.setattr("rome_mlx.moments.estimator._add_rows", failing)
        with pytest.raises(KeyboardInterrupt):
            lookup.ensure_moments(model, TOKENIZER, [1])
    assert list(small.glob("*/layer-1.safetensors"))
    with pytest.raises(RomeError, match="no second moments"):
        lookup.moment_matrix(model, TOKENIZER, 1)
    assert lookup.ensure_moments(model, TOKENIZER, [1]).used[1]["tokens"] == 5120


def test_what_was_used_is_told_in_words():
    used = {4: {"corpus": "a.txt", "tokens": 1000, "sha256": "0"},
            5: {"corpus": "a.txt", "tokens": 1000, "sha256": "1"},
            6: {"corpus": "given", "tokens": None, "sha256": "2"},
            7: {"corpus": "self", "tokens": 5, "sha256": "3"}}
    assert lookup.moments_told(used) == (
        "C of layers 4, 5: 1,000 tokens of a.txt; C of layer 6: given; C of layer 7: 5 tokens of "
        "the model's own samples")
    assert lookup.moments_told(None) is None


# making what is missing

def test_missing_moments_are_made_once_in_one_pass_and_kept(model, small, monkeypatch, capsys):
    calls = []

    def counting(*arguments, **options):
        calls.append(arguments[2])
        return second_moments(*arguments, **options)

    monkeypatch.setattr(lookup, "second_moments", counting)
    found = lookup.ensure_moments(model, TOKENIZER, [1, 2])
    assert "no second moments for layers [1, 2]" in capsys.readouterr().err and calls == [[1, 2]]
    made = second_moments(model, TOKENIZER, [2], "self", 480)[2].value()
    assert relative(found.matrix(2), made) < 1e-6

    lookup.ensure_moments(model, TOKENIZER, [2])
    assert capsys.readouterr().err == "" and len(calls) == 1


def test_own_samples_are_ten_tokens_per_dimension_of_the_widest_layer():
    assert lookup.enough_tokens({0: {"dim": 20}, 1: {"dim": 14_336}}) == 143_360


def test_a_thin_c_is_told_once_with_the_remedy(model, text, small, capsys):
    moments = second_moments(model, TOKENIZER, [1, 2], text, 64, row_length=16)
    for _ in range(2):
        lookup.ensure_moments(model, TOKENIZER, [1, 2], moments)
    said, = capsys.readouterr().err.splitlines()
    assert "C of layers [1, 2] is thin, 1.3 tokens per dimension" in said
    assert "rome-mlx moments --layers 1,2 --corpus self --tokens 480" in said and "ridge" in said


def test_a_lookup_serves_its_model_and_is_done_again_for_another(model):
    given = {1: spd(48), 2: spd(48)}
    found = lookup.ensure_moments(model, TOKENIZER, [1, 2], given)
    assert lookup.find_moments(model, TOKENIZER, [2], found) is found
    other = lookup.find_moments(tiny_model("llama", seed=1), TOKENIZER, [2], found)
    assert other is not found and np.array_equal(other.matrix(2), given[2])


def test_where_nobody_watches_progress_is_a_line_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("rome_mlx.moments.progress.time",
                        SimpleNamespace(monotonic=lambda: now[0]))
    with Progress(1000, 100, True) as progress:
        for seconds in (4, 11, 15, 22):
            now[0] = seconds
            progress.add(100)
    assert capsys.readouterr().err.splitlines() == [
        "rome-mlx: 300 of 1,000 tokens counted, about 38 s left",
        "rome-mlx: 500 of 1,000 tokens counted, about 28 s left"]


def test_time_left_knows_that_sampling_takes_most_of_it(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("rome_mlx.moments.progress.time",
                        SimpleNamespace(monotonic=lambda: now[0]))
    with Progress(1000, 0, True) as progress:  # 0.09 s a token to sample, 0.01 s to count
        for seconds, sampled, counted in ((45, 500, 0), (90, 1000, 0), (91, 0, 100), (102, 0, 100)):
            now[0] = seconds
            progress.add(counted) if counted else progress.sampling(sampled)
    assert capsys.readouterr().err.splitlines() == [
        "rome-mlx: 0 of 1,000 tokens counted, 500 sampled, about 55 s left",
        "rome-mlx: 0 of 1,000 tokens counted, 1,000 sampled, about 10 s left",
        "rome-mlx: 200 of 1,000 tokens counted, 1,000 sampled, about 9 s left"]


def test_the_share_that_is_done_is_never_more_than_one_where_few_of_the_samples_count():
    told = []
    with Progress(100, 0, False, lambda share, left: told.append(share)) as progress:
        for sampled, counted in ((300, 10), (1200, 90)):
            progress.sampling(sampled)
            progress.add(counted)
    assert told == sorted(told) and told[-1] == 1
