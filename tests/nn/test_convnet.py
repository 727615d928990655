"""Convolution with batch norm, pooling and residual blocks, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.convnet import BatchNorm, ConvNorm, Residual, ResNet, max_pool


def nhwc(x):
    return jnp.asarray(x.detach().numpy().transpose(0, 2, 3, 1))


def random_norm(channels, eps):
    """PyTorch's batch norm with random statistics, and ours with the same."""
    theirs, ours = torch.nn.BatchNorm2d(channels, eps=eps).eval(), BatchNorm(channels, eps)
    for name, ours_name in (
        ("weight", "scale"),
        ("bias", "bias"),
        ("running_mean", "mean"),
        ("running_var", "variance"),
    ):
        values = torch.rand(channels) + 0.5
        getattr(theirs, name).data.copy_(values)
        getattr(ours, ours_name)[...] = jnp.asarray(values.numpy())
    return theirs, ours


@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 0), ((1, 7), 1, (0, 3)), (7, 2, 3)])
def test_conv_norm(kernel, stride, padding):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 17, 19)
    conv = torch.nn.Conv2d(5, 6, kernel, stride=stride, padding=padding, bias=False)
    norm, ours_norm = random_norm(6, 1e-3)
    ours = ConvNorm(
        5,
        6,
        kernel,
        stride=stride,
        padding=padding,
        eps=1e-3,
        compute=ComputeConfig(),
        rngs=nnx.Rngs(0),
    )
    ours.conv.kernel[...] = jnp.asarray(conv.weight.detach().numpy().transpose(2, 3, 1, 0))
    ours.norm = ours_norm
    np.testing.assert_allclose(ours(nhwc(x)), nhwc(torch.relu(norm(conv(x)))), atol=2e-6)


@pytest.mark.parametrize("padding", [0, 1])
def test_max_pool(padding):
    x = torch.randn(1, 3, 15, 16)
    np.testing.assert_array_equal(
        max_pool(nhwc(x), padding=padding), nhwc(torch.nn.functional.max_pool2d(x, 3, 2, padding))
    )


def test_batch_norm_keeps_the_dtype():
    x = jnp.linspace(-1, 1, 24, dtype=jnp.bfloat16).reshape(1, 2, 3, 4)
    y = BatchNorm(4)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), x.astype(jnp.float32), rtol=1e-2)


def test_resnet_maps():
    shapes = jax.eval_shape(
        lambda x: ResNet((3, 4, 6, 3), bottleneck=True, compute=ComputeConfig(), rngs=nnx.Rngs(0))(
            x
        ),
        jnp.zeros((1, 64, 96, 3)),
    )
    assert [s.shape for s in shapes] == [
        (1, 16, 24, 256),
        (1, 8, 12, 512),
        (1, 4, 6, 1024),
        (1, 2, 3, 2048),
    ]


def test_residual_is_its_input_without_weights():
    block = Residual(4, 4, stride=1, bottleneck=False, compute=ComputeConfig(), rngs=nnx.Rngs(0))
    block.conv_2.norm.scale[...] = jnp.zeros(4)
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 4))
    np.testing.assert_allclose(block(x), jnp.maximum(x, 0), atol=1e-6)
