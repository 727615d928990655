import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.embeddings import timestep_embedding
from caphuman_jax.nn.layers import (
    GroupNorm,
    LayerNorm,
    conv,
    convolve_upsampled,
    depth_to_space,
    quick_gelu,
    space_to_depth,
    upsample,
)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(x):
    """NHWC → NCHW tensor."""
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def from_torch(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_group_norm(eps):
    x, scale, bias = 3 * normal((2, 5, 7, 12)) + 1, normal((12,), 1), normal((12,), 2)
    norm = GroupNorm(12, groups=4, eps=eps, compute=ComputeConfig())
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    expected = torch.nn.functional.group_norm(
        to_torch(x), 4, torch.from_numpy(scale), torch.from_numpy(bias), eps
    )
    np.testing.assert_allclose(norm(jnp.asarray(x)), from_torch(expected), atol=1e-5)


def test_group_norm_survives_a_large_mean():
    """A variance as mean of squares minus square of mean would be lost here."""
    x = normal((1, 8, 8, 4)) + 3000
    expected = (x.astype(np.float64) - x.astype(np.float64).mean()) / x.astype(np.float64).std()
    np.testing.assert_allclose(
        GroupNorm(4, groups=1, compute=ComputeConfig())(jnp.asarray(x)), expected, atol=2e-3
    )


def test_group_norm_computes_in_float32_and_keeps_the_dtype():
    x = jnp.asarray(normal((1, 8, 8, 4)) + 20).astype(jnp.bfloat16)
    out = GroupNorm(4, groups=2, compute=ComputeConfig())(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32),
        GroupNorm(4, groups=2, compute=ComputeConfig())(x.astype(jnp.float32)),
        rtol=2**-8,
        atol=1e-6,
    )


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="48 channels cannot be split into 32 groups"):
        GroupNorm(48, groups=32, compute=ComputeConfig())


def test_layer_norm():
    x, scale, bias = normal((2, 5, 12)) - 2, normal((12,), 1), normal((12,), 2)
    norm = LayerNorm(12)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    expected = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (12,), torch.from_numpy(scale), torch.from_numpy(bias), 1e-5
    )
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "padding, stride", [(((1, 1), (1, 1)), 1), (((1, 1), (1, 1)), 2), (((0, 1), (0, 1)), 2)]
)
def test_conv_pads_as_pytorch(padding, stride):
    x = normal((1, 8, 6, 3))
    layer = conv(3, 5, stride=stride, padding=padding, compute=ComputeConfig(), rngs=nnx.Rngs(0))
    weight = torch.from_numpy(np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).copy())
    (top, bottom), (left, right) = padding
    padded = torch.nn.functional.pad(to_torch(x), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, weight, stride=stride)
    np.testing.assert_allclose(layer(jnp.asarray(x)), from_torch(expected), atol=1e-5)


def test_upsample_repeats_pixels():
    x = normal((2, 3, 4, 5))
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))


def test_space_to_depth_and_back():
    x = jnp.asarray(normal((2, 4, 6, 3)))
    deep = space_to_depth(x, 2)
    assert deep.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(deep[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(deep, 2), x)


def test_quick_gelu():
    x = np.linspace(-5, 5, 21, dtype=np.float32)
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


def test_timestep_embedding_is_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    t = np.array([0, 1, 37, 801, 999], np.float32)
    expected = get_timestep_embedding(
        torch.from_numpy(t), 320, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    np.testing.assert_allclose(timestep_embedding(jnp.asarray(t), 320), expected, atol=2e-4)


def test_timestep_embedding_refuses_bfloat16():
    with pytest.raises(TypeError, match="float32"):
        timestep_embedding(jnp.asarray([801.0], jnp.bfloat16), 320)


def test_neighboring_timesteps_stay_apart_under_jit():
    a, b = jax.jit(lambda t: timestep_embedding(t, 64))(jnp.asarray([998.0, 999.0], jnp.float32))
    assert float(jnp.abs(a - b).max()) > 0.5


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_convolution_of_what_was_upsampled(platform):
    """And its gradients, for which CPUs have a way of their own."""
    compute = ComputeConfig(platform=platform)
    layer = conv(5, 7, compute=compute, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(normal((7,), 1))
    x, wanted = normal((2, 3, 4, 5)), normal((2, 6, 8, 7), 2)
    graph, params = nnx.split(layer)
    value, to_params_and_x = jax.vjp(
        lambda params, x: convolve_upsampled(nnx.merge(graph, params), x, compute),
        params,
        jnp.asarray(x),
    )
    to_params, to_x = to_params_and_x(jnp.asarray(wanted))

    same = torch.nn.Conv2d(5, 7, 3, padding=1)
    with torch.no_grad():
        same.weight.copy_(torch.from_numpy(np.array(layer.kernel[...]).transpose(3, 2, 0, 1)))
        same.bias.copy_(torch.from_numpy(np.array(layer.bias[...])))
    input = to_torch(x).requires_grad_()
    expected = same(torch.nn.functional.interpolate(input, scale_factor=2, mode="nearest"))
    expected.backward(to_torch(wanted))
    np.testing.assert_allclose(value, from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(layer(upsample(jnp.asarray(x))), from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(to_x, from_torch(input.grad), atol=2e-5)
    kernel = same.weight.grad.numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(to_params["kernel"][...], kernel, atol=5e-5)


def test_upsampled_convolution_of_a_kernel_in_bfloat16():
    layer, x = (
        conv(5, 7, compute=ComputeConfig(jnp.bfloat16), rngs=nnx.Rngs(0)),
        jnp.asarray(normal((1, 3, 4, 5)), jnp.bfloat16),
    )
    graph, state = nnx.split(layer)
    params = nnx.to_pure_dict(state)
    run = jax.jit(lambda params: convolve_upsampled(nnx.merge(graph, params), x))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    np.testing.assert_array_equal(
        np.asarray(run(params), np.float32), np.asarray(run(rounded), np.float32)
    )
