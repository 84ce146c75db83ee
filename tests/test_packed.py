"""Products with quantized weights by slices are MLX's own, and so are their gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from rome_mlx.accel import packed
from rome_mlx.accel.linux_cpu import slow_exponentials

pytestmark = pytest.mark.skipif(not slow_exponentials(), reason="only on a Linux CPU")


class Both(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.words = nn.QuantizedEmbedding(96, 128, **how)
        self.layer = nn.QuantizedLinear(128, 192, **how)

    def __call__(self, x):
        return (self.words.as_linear(x) ** 2).sum() + (mx.sin(self.layer(x))).sum()


MODES = [{"group_size": size, "bits": bits} for size in (32, 64, 128) for bits in (2, 3, 4, 6, 8)]
MODES += [{"mode": "mxfp4"}, {"mode": "nvfp4"}]


@pytest.mark.parametrize("how", MODES, ids=str)
def test_products_and_gradients_are_those_of_the_dequantized_weight(how, monkeypatch):
    monkeypatch.setattr(packed, "SLICE", 128 * 7)  # slices that do not divide the rows
    mx.random.seed(0)
    module, x = Both(**how), mx.random.normal((3, 5, 128))
    if "mode" not in how:
        module.layer.bias = mx.random.normal((192,))
    value, gradient = mx.value_and_grad(lambda x: module(x))(x)
    with packed.fast_products([module]):
        assert type(module.layer) is not nn.QuantizedLinear
        fast_value, fast_gradient = mx.value_and_grad(lambda x: module(x))(x)
    assert type(module.layer) is nn.QuantizedLinear and type(module.words) is nn.QuantizedEmbedding
    np.testing.assert_allclose(fast_value.item(), value.item(), rtol=1e-5)
    np.testing.assert_allclose(np.array(fast_gradient), np.array(gradient), rtol=1e-4, atol=1e-4)


def test_a_half_precision_input_gives_a_half_precision_output():
    module, x = Both(group_size=64, bits=4), mx.random.normal((4, 128)).astype(mx.bfloat16)
    with packed.fast_products([module]):
        out = module.words.as_linear(x)
    assert out.dtype == mx.bfloat16
    np.testing.assert_allclose(np.array(out.astype(mx.float32)),
                               np.array(module.words.as_linear(x.astype(mx.float32))),
                               atol=0.05, rtol=0.02)


def test_the_inputs_of_a_later_product_are_not_what_an_earlier_one_left_in_memory():
    """Both weights are unpacked into the same memory; each product is finished before."""
    module, x = Both(group_size=64, bits=4), mx.random.normal((4, 128))
    with packed.fast_products([module]):
        one, other = module.words.as_linear(x), module.layer(x)
        mx.eval(one, other)
    np.testing.assert_allclose(np.array(one), np.array(module.words.as_linear(x)), atol=1e-4)
    np.testing.assert_allclose(np.array(other), np.array(module.layer(x)), atol=1e-4)


@pytest.mark.parametrize("how", MODES, ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_weight_is_unpacked_to_the_bits_of_mlx_with_wide_scales(how, dtype):
    mx.random.seed(1)
    module = nn.QuantizedLinear(128, 192, bias=False, **how)
    if "mode" not in how:
        module.set_dtype(dtype)
    found = np.array(packed.unpacked(module))
    np.testing.assert_array_equal(found, np.array(packed.dequantize(module)))
    x = mx.random.normal((4, 128))
    np.testing.assert_allclose(np.array(x @ mx.array(found).T), np.array(module(x)), atol=1e-5)
