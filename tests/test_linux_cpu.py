import sys
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import base
from scipy.special import logsumexp
from tiny import tiny_model

from rome_mlx.accel import gates, linux_cpu
from rome_mlx.accel.gates import fast_gates, geglu, swiglu
from rome_mlx.accel.linux_cpu import (
    fast_rotations,
    log_sum_exp,
    slow_exponentials,
)
from rome_mlx.models.decoder import Decoder


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (2, 200, 7)])
def test_the_gate_is_silu_times_up(shape):
    gate, up = (mx.random.normal(shape, key=mx.random.key(i)) * 30 for i in (0, 1))
    g, u = (np.array(x, np.float64) for x in (gate, up))
    np.testing.assert_allclose(np.array(swiglu(gate, up)), g / (1 + np.exp(-g)) * u, rtol=1e-5,
                               atol=1e-30)


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (2, 200, 7)])
def test_gemmas_gate_is_gelu_by_tanh_times_up(shape):
    gate, up = (mx.random.normal(shape, key=mx.random.key(i)) * 3 for i in (0, 1))
    g, u = (np.array(x, np.float64) for x in (gate, up))
    expected = g * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) / 2
    np.testing.assert_allclose(np.array(geglu(gate, up)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(geglu(gate * 30, up)), np.array(nn.gelu_approx(gate * 30)
                                                                        * up), rtol=1e-4, atol=1e-5)


def test_the_gate_of_large_and_half_precision_values_is_right():
    x = mx.array([[-1e4, -90.0, 0.0, 90.0, 1e4]])
    np.testing.assert_allclose(np.array(swiglu(x, mx.ones_like(x))), [[0, 0, 0, 90, 1e4]],
                               atol=1e-30)
    half = x.astype(mx.float16)
    assert swiglu(half, half).dtype == mx.float16


@pytest.mark.parametrize("shape", [(1, 5), (300, 1000), (2, 3, 40)])
def test_the_log_of_summed_exponentials_is_right_and_does_not_overflow(shape):
    x = mx.random.normal(shape, key=mx.random.key(1)) * 200
    expected = logsumexp(np.array(x, np.float64), axis=-1)
    np.testing.assert_allclose(np.array(log_sum_exp(x)), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("fast_gate", "activation", "size"),
                         [(swiglu, nn.silu, 20), (geglu, nn.gelu_approx, 3)])
def test_the_gradients_are_those_of_mlx(fast_gate, activation, size, monkeypatch):
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    x, y = (mx.random.normal((5, 70), key=mx.random.key(i)) * size for i in (0, 1))

    def fast(x, y):
        return (log_sum_exp(fast_gate(x, y) + x) ** 2).sum()

    def plain(x, y):
        return (mx.logsumexp(activation(x) * y + x, axis=-1) ** 2).sum()

    for found, expected in zip(mx.grad(fast, (0, 1))(x, y), mx.grad(plain, (0, 1))(x, y),
                               strict=True):
        scale = float(mx.abs(expected).max())
        assert scale > 1 and float(mx.abs(found - expected).max()) < 1e-5 * scale


@pytest.mark.skipif(not slow_exponentials(), reason="gates are only replaced on a Linux CPU")
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_model_computes_the_same_and_gets_its_own_modules_back(kind):
    model, ids = tiny_model(kind), mx.array([[1, 2, 3]])
    mlps = [layer.mlp for layer in model.model.layers]
    classes, expected = [type(mlp) for mlp in mlps], model(ids)
    with pytest.raises(RuntimeError), fast_gates(mlps):
        assert all(type(mlp) is not cls for mlp, cls in zip(mlps, classes, strict=True))
        np.testing.assert_allclose(np.array(model(ids)), np.array(expected), atol=1e-5)
        raise RuntimeError
    assert [type(mlp) for mlp in mlps] == classes


@pytest.mark.parametrize("kind", ["llama", "deepseek_v2", "gemma3_text"])
def test_the_ways_that_mlx_lm_writes_a_gated_mlp_are_recognised(kind, monkeypatch):
    monkeypatch.setattr(gates, "slow_exponentials", lambda: True)
    mlp = tiny_model(kind).model.layers[0].mlp
    cls = type(mlp)
    with fast_gates([mlp]):
        assert type(mlp) is not cls


@pytest.mark.parametrize("kind", ["gpt2", "phi"])
def test_other_mlps_are_left_alone(kind):
    mlps = [m for name, m in tiny_model(kind).named_modules() if name.endswith("mlp")]
    classes = [type(mlp) for mlp in mlps]
    with fast_gates(mlps):
        assert [type(mlp) for mlp in mlps] == classes and isinstance(mlps[0], nn.Module)


# the names of mlx-lm's llama, and other arithmetic
LOOK_ALIKES = {
    "another swiglu": """
def swiglu(gate, up):
    return mx.sigmoid(gate) * up

class MLP(llama.MLP):
    def __call__(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
""",
    "gate and up exchanged": """
from mlx_lm.models.activations import swiglu

class MLP(llama.MLP):
    def __call__(self, x):
        return self.down_proj(swiglu(self.up_proj(x), self.gate_proj(x)))
""",
    "the input added": """
from mlx_lm.models.activations import swiglu

class MLP(llama.MLP):
    def __call__(self, x):
        return x + self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
"""}


def look_alike(source: str, name: str) -> type:
    """The class `name` of a module of its own, as a new model file of mlx-lm would be."""
    file = ModuleType("look_alike")
    exec(f"import mlx.core as mx\nfrom mlx_lm.models import llama\n{source}", vars(file))
    return getattr(file, name)


@pytest.mark.parametrize("source", LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_an_mlp_of_the_same_names_and_other_arithmetic_is_left_alone(source, monkeypatch):
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    mlp = tiny_model("llama").model.layers[0].mlp
    mlp.__class__ = look_alike(source, "MLP")
    x = mx.random.normal((2, 32), key=mx.random.key(0))
    expected = np.array(mlp(x))
    with fast_gates([mlp]):
        np.testing.assert_array_equal(mlp(x), expected)


def test_an_attention_with_a_function_of_the_same_name_is_left_alone(monkeypatch):
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    file = ModuleType("look_alike")
    exec("def scaled_dot_product_attention(queries, keys, values, cache, scale, mask):\n"
         "    return queries\n"
         "class Attention:\n"
         "    def __call__(self, x):\n"
         "        return scaled_dot_product_attention(x, x, x, None, 1.0, 'causal')\n", vars(file))
    monkeypatch.setitem(sys.modules, "look_alike", file)
    attention, x = file.Attention(), mx.random.normal((1, 1, 5, 8), key=mx.random.key(0))
    file.Attention.__module__ = "look_alike"
    with linux_cpu.fast_attention([attention]):
        assert attention(x) is x


def test_an_attention_that_inherits_its_call_is_fast_too(monkeypatch):
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    cls = look_alike("class Attention(llama.Attention):\n    pass", "Attention")
    attention = tiny_model("llama").model.layers[0].self_attn
    attention.__class__ = cls
    calls, fast = [], linux_cpu.causal_attention
    monkeypatch.setattr(linux_cpu, "causal_attention",
                        lambda *arguments: calls.append(1) or fast(*arguments))
    x = mx.random.normal((1, 5, 32), key=mx.random.key(0))
    expected = np.array(attention(x, mask="causal"))
    with linux_cpu.fast_attention([attention]):
        np.testing.assert_allclose(attention(x, mask="causal"), expected, atol=1e-5)
    assert calls == [1]


def test_attention_sinks_are_left_to_mlx(monkeypatch):
    monkeypatch.setattr(linux_cpu, "causal_attention", None)
    x, sinks = mx.random.normal((1, 2, 5, 8), key=mx.random.key(0)), mx.array([0.5, 2.0])
    plain = base.scaled_dot_product_attention
    found = linux_cpu._attention(plain, x, x, x, None, 1.0, "causal", sinks)
    np.testing.assert_array_equal(found, plain(x, x, x, None, 1.0, "causal", sinks))


@pytest.mark.parametrize("options", [{}, {"base": 5e5, "scale": 0.25}])
def test_rotations_at_the_rows_own_offsets_are_those_of_mlx(options, monkeypatch):
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    model = nn.Sequential(nn.RoPE(16, **options))
    rope, x = model.layers[0], mx.random.normal((3, 2, 5, 16), key=mx.random.key(0))
    weights, offsets = mx.random.normal(x.shape, key=mx.random.key(1)), mx.array([0, 7, 300])

    def turned(tokens, offset):
        gradient = mx.grad(lambda x: (rope(x, offset=offset) * weights[:, :, :tokens]).sum())
        return [np.array(f(x[:, :, :tokens])) for f in (lambda x: rope(x, offset=offset), gradient)]

    cases = [(5, offsets), (2, offsets), (5, offsets + 1), (5, 4)]
    plain = [turned(*case) for case in cases]
    with fast_rotations(model):
        for case, expected in zip(cases * 2, plain * 2, strict=True):
            np.testing.assert_allclose(turned(*case), expected, atol=5e-5)
    assert type(rope) is nn.RoPE


@pytest.mark.parametrize("rope", [nn.RoPE(16, traditional=True), nn.RoPE(8)])
def test_other_rotations_are_left_alone(rope, monkeypatch):
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    x, offsets = mx.random.normal((2, 1, 3, 16), key=mx.random.key(0)), mx.array([2, 5])
    expected = np.array(rope(x, offset=offsets))
    with fast_rotations(nn.Sequential(rope)):
        np.testing.assert_array_equal(rope(x, offset=offsets), expected)


@pytest.mark.parametrize("heads, shared, tokens", [(9, 3, 70), (4, 4, 32), (2, 1, 1), (2, 2, 33)])
def test_attention_is_that_of_mlx(heads, shared, tokens):
    keys = mx.random.split(mx.random.key(0), 3)
    queries = 3 * mx.random.normal((2, heads, tokens, 8), key=keys[0])
    k, v = (mx.random.normal((2, shared, tokens, 8), key=key) for key in keys[1:])
    expected = mx.fast.scaled_dot_product_attention(queries, k, v, scale=0.3, mask="causal")
    found = linux_cpu.causal_attention(queries, k, v, 0.3)
    assert float(mx.abs(found - expected).max()) < 1e-5
    large = linux_cpu.causal_attention(queries * 1e4, k, v, 0.3)
    assert bool(mx.isfinite(large).all())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "gemma3_text"])
def test_with_fast_attention_a_model_computes_the_same_and_is_put_back(model_type, monkeypatch):
    model = tiny_model(model_type)
    decoder, calls = Decoder(model), []
    ids = [[*range(3, 45)], [*range(50, 92)]]
    expected = decoder.run(decoder.enter(decoder.embed(ids)))
    attentions = [decoder.module(i, "attn") for i in range(len(decoder.layers))]
    file = sys.modules[type(attentions[0]).__module__]
    before = getattr(file, "scaled_dot_product_attention", None)
    fast = linux_cpu.causal_attention
    monkeypatch.setattr(linux_cpu, "slow_exponentials", lambda: True)
    monkeypatch.setattr(linux_cpu, "causal_attention",
                        lambda *arguments: calls.append(1) or fast(*arguments))
    with linux_cpu.fast_attention(attentions):
        found = decoder.run(decoder.enter(decoder.embed(ids)))
    assert float(mx.abs(found - expected).max()) < 1e-4 * float(mx.abs(expected).max())
    assert getattr(file, "scaled_dot_product_attention", None) is before
    assert len(calls) == {"llama": 4, "gpt2": 4, "gemma2": 0, "gemma3_text": 2}[model_type]
