import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.special import logsumexp
from tiny import tiny_model

from rome_mlx.linux_cpu import fast_gates, log_sum_exp, slow_exponentials, swiglu


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (2, 200, 7)])
def test_the_gate_is_silu_times_up(shape):
    gate, up = (mx.random.normal(shape, key=mx.random.key(i)) * 30 for i in (0, 1))
    g, u = (np.array(x, np.float64) for x in (gate, up))
    np.testing.assert_allclose(np.array(swiglu(gate, up)), g / (1 + np.exp(-g)) * u, rtol=1e-5,
                               atol=1e-30)


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


@pytest.mark.skipif(not slow_exponentials(), reason="gates are only replaced on a Linux CPU")
def test_a_llama_computes_the_same_and_gets_its_own_modules_back():
    model, ids = tiny_model("llama"), mx.array([[1, 2, 3]])
    mlps = [layer.mlp for layer in model.model.layers]
    classes, expected = [type(mlp) for mlp in mlps], model(ids)
    with pytest.raises(RuntimeError), fast_gates(mlps):
        assert all(type(mlp) is not cls for mlp, cls in zip(mlps, classes, strict=True))
        np.testing.assert_allclose(np.array(model(ids)), np.array(expected), atol=1e-5)
        raise RuntimeError
    assert [type(mlp) for mlp in mlps] == classes


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_other_mlps_are_left_alone(kind):
    mlps = [m for name, m in tiny_model(kind).named_modules() if name.endswith("mlp")]
    classes = [type(mlp) for mlp in mlps]
    with fast_gates(mlps):
        assert [type(mlp) for mlp in mlps] == classes and isinstance(mlps[0], nn.Module)
