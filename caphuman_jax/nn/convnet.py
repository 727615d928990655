"""What trained convolutional classifiers are made of: convolution with batch norm, pooling, ResNet.
Inference only, NHWC.

The running statistics of a batch norm are parameters here like the others: these networks are used
as they were trained."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import lecun_normal
from caphuman_jax.nn.typing import Rngs


class BatchNorm(nnx.Module):
    """Batch normalization (arXiv 1502.03167) with fixed statistics over the last axis,
    in float32.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """x (..., C) → the same shape and dtype."""
        factor = self.scale[...] * jax.lax.rsqrt(self.variance[...] + self.eps)
        offset = self.bias[...] - self.mean[...] * factor
        factor, offset = (broadcast_to_rank(part, x.ndim) for part in (factor, offset))
        return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm and, if `activate`, ReLU. `padding`: on every side, or
    (rows, columns).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        eps: float = 1e-5,
        activate: bool = True,
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        kernel, padding = ((v, v) if isinstance(v, int) else v for v in (kernel, padding))
        self.activate = activate
        self.conv = nnx.Conv(
            inputs,
            outputs,
            kernel_size=kernel,
            strides=stride,
            padding=tuple((p, p) for p in padding),
            use_bias=False,
            kernel_init=lecun_normal,
            dtype=compute.dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs, eps)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        """(B, H, W, inputs) → (B, H', W', outputs)."""
        x = self.norm(self.conv(x))
        return jax.nn.relu(x) if self.activate else x


def max_pool(x: Float[Array, "b h w c"], *, padding: int = 0) -> Float[Array, "b h2 w2 c"]:
    """Largest of 3×3 at stride 2: (B, H, W, C) → (B, H', W', C)."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((padding, padding), (padding, padding)))


class ResNet(nnx.Module):
    """ResNet (arXiv 1512.03385) up to its last feature map; strides sit in the 3×3 convolutions, as
    in torchvision.

    Args:
        blocks: residual blocks in each of the four stages: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3)
        with `bottleneck` ResNet-50.
    """

    def __init__(
        self, blocks: Sequence[int], *, bottleneck: bool, compute: ComputeConfig, rngs: Rngs
    ):
        self.stem = ConvNorm(3, 64, 7, stride=2, padding=3, compute=compute, rngs=rngs)
        self.stages = nnx.Dict({})
        width = 64
        for stage, count in enumerate(blocks):
            self.stages[str(stage)] = nnx.Dict({})
            for i in range(count):
                block = Residual(
                    width,
                    64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    bottleneck=bottleneck,
                    compute=compute,
                    rngs=rngs,
                )
                self.stages[str(stage)][str(i)] = block
                width = block.width

    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Array]:
        """(B, H, W, 3) → the four stages' feature maps, at 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = max_pool(self.stem(x), padding=1)
        maps = []
        for stage in range(len(self.stages)):
            for i in range(len(self.stages[str(stage)])):
                x = self.stages[str(stage)][str(i)](x)
            maps.append(x)
        return maps


class Residual(nnx.Module):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 (`bottleneck`, four times as wide at the end), added
    to the input.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        stride: int,
        bottleneck: bool,
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        common = {"compute": compute, "rngs": rngs}
        self.width = 4 * channels if bottleneck else channels
        if bottleneck:
            self.conv_1 = ConvNorm(inputs, channels, 1, **common)
            self.conv_2 = ConvNorm(channels, channels, 3, stride=stride, padding=1, **common)
            self.conv_3 = ConvNorm(channels, self.width, 1, activate=False, **common)
        else:
            self.conv_1 = ConvNorm(inputs, channels, 3, stride=stride, padding=1, **common)
            self.conv_2 = ConvNorm(channels, channels, 3, padding=1, activate=False, **common)
            self.conv_3 = None
        self.shortcut = (
            ConvNorm(inputs, self.width, 1, stride=stride, activate=False, **common)
            if stride > 1 or inputs != self.width
            else None
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        """(B, H, W, inputs) → (B, H/stride, W/stride, width)."""
        h = self.conv_2(self.conv_1(x))
        if self.conv_3 is not None:
            h = self.conv_3(h)
        return jax.nn.relu(h + (x if self.shortcut is None else self.shortcut(x)))
