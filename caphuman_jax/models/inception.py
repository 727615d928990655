"""Inception v3 (arXiv 1512.00567) up to its last pooling, in the form that FID is computed with:
average pooling does not count the padding, and the last block pools by maximum. The names are those
of torchvision and of `pt_inception-2015-12-05`, the file that pytorch-fid publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SIZE, WIDTH = 299, 2048
EPSILON = 1e-3  # of the batch norms
_SAME = "SAME"


class Conv(NamedTuple):
    """A convolution without bias, a batch norm and a ReLU. Kernel (rows, columns)."""

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = _SAME


def _layers() -> dict[str, Conv]:
    wide, tall, square = (1, 7), (7, 1), (3, 3)
    layers = {
        "Conv2d_1a_3x3": Conv(3, 32, square, 2, "VALID"),
        "Conv2d_2a_3x3": Conv(32, 32, square, 1, "VALID"),
        "Conv2d_2b_3x3": Conv(32, 64, square),
        "Conv2d_3b_1x1": Conv(64, 80),
        "Conv2d_4a_3x3": Conv(80, 192, square, 1, "VALID"),
    }

    def block(name: str, **branches: Conv) -> None:
        layers.update({f"{name}.{branch}": conv for branch, conv in branches.items()})

    for name, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        block(
            f"Mixed_{name}",
            branch1x1=Conv(inputs, 64),
            branch5x5_1=Conv(inputs, 48),
            branch5x5_2=Conv(48, 64, (5, 5)),
            branch3x3dbl_1=Conv(inputs, 64),
            branch3x3dbl_2=Conv(64, 96, square),
            branch3x3dbl_3=Conv(96, 96, square),
            branch_pool=Conv(inputs, pooled),
        )
    block(
        "Mixed_6a",
        branch3x3=Conv(288, 384, square, 2, "VALID"),
        branch3x3dbl_1=Conv(288, 64),
        branch3x3dbl_2=Conv(64, 96, square),
        branch3x3dbl_3=Conv(96, 96, square, 2, "VALID"),
    )
    for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        block(
            f"Mixed_{name}",
            branch1x1=Conv(768, 192),
            branch7x7_1=Conv(768, inner),
            branch7x7_2=Conv(inner, inner, wide),
            branch7x7_3=Conv(inner, 192, tall),
            branch7x7dbl_1=Conv(768, inner),
            branch7x7dbl_2=Conv(inner, inner, tall),
            branch7x7dbl_3=Conv(inner, inner, wide),
            branch7x7dbl_4=Conv(inner, inner, tall),
            branch7x7dbl_5=Conv(inner, 192, wide),
            branch_pool=Conv(768, 192),
        )
    block(
        "Mixed_7a",
        branch3x3_1=Conv(768, 192),
        branch3x3_2=Conv(192, 320, square, 2, "VALID"),
        branch7x7x3_1=Conv(768, 192),
        branch7x7x3_2=Conv(192, 192, wide),
        branch7x7x3_3=Conv(192, 192, tall),
        branch7x7x3_4=Conv(192, 192, square, 2, "VALID"),
    )
    for name, inputs in (("7b", 1280), ("7c", 2048)):
        block(
            f"Mixed_{name}",
            branch1x1=Conv(inputs, 320),
            branch3x3_1=Conv(inputs, 384),
            branch3x3_2a=Conv(384, 384, (1, 3)),
            branch3x3_2b=Conv(384, 384, (3, 1)),
            branch3x3dbl_1=Conv(inputs, 448),
            branch3x3dbl_2=Conv(448, 384, square),
            branch3x3dbl_3a=Conv(384, 384, (1, 3)),
            branch3x3dbl_3b=Conv(384, 384, (3, 1)),
            branch_pool=Conv(inputs, 192),
        )
    return layers


LAYERS = _layers()
Params = Mapping[str, tuple[Array, Array]]
"""{layer: kernel (rows, columns, in, out) with its batch norm's scale, bias (out,)}."""


def folded(
    kernel: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A convolution with the batch norm after it.

    Args:
        kernel: (out, in, rows, columns), as PyTorch stores it.
        scale, bias, mean, variance: (out,) of the batch norm.

    Returns:
        An entry of `Params`.
    """
    factor = scale / np.sqrt(variance + EPSILON)
    return kernel.transpose(2, 3, 1, 0) * factor, bias - mean * factor


def features(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
    """What FID compares, of RGB images in [0, 1] of any size."""

    def conv(name: str, x: Array) -> Array:
        (kernel, bias), layer = params[name], LAYERS[name]
        stride = (layer.stride, layer.stride)
        dimensions = ("NHWC", "HWIO", "NHWC")
        made = jax.lax.conv_general_dilated(
            x, kernel, stride, layer.padding, None, None, dimensions
        )
        return jax.nn.relu(made + bias)

    def chain(name: str, x: Array, *branches: str) -> Array:
        for branch in branches:
            x = conv(f"{name}.{branch}", x)
        return x

    def numbered(name: str, x: Array, branch: str, count: int) -> Array:
        return chain(name, x, *(f"{branch}_{i + 1}" for i in range(count)))

    def forked(name: str, x: Array, branch: str) -> list[Array]:
        return [conv(f"{name}.{branch}{end}", x) for end in "ab"]

    together = lambda *branches: jnp.concatenate(branches, axis=-1)
    batch, _, _, channels = images.shape
    # As torch's interpolate(mode="bilinear", align_corners=False): without smoothing.
    size = (batch, SIZE, SIZE, channels)
    x = 2 * jax.image.resize(images, size, "bilinear", antialias=False) - 1
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
        x = conv(name, x)
    x = _largest(x, 2, "VALID")
    x = _largest(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 2, "VALID")
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = together(
            chain(name, x, "branch1x1"),
            numbered(name, x, "branch5x5", 2),
            numbered(name, x, "branch3x3dbl", 3),
            chain(name, _average(x), "branch_pool"),
        )
    x = together(
        chain("Mixed_6a", x, "branch3x3"),
        numbered("Mixed_6a", x, "branch3x3dbl", 3),
        _largest(x, 2, "VALID"),
    )
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = together(
            chain(name, x, "branch1x1"),
            numbered(name, x, "branch7x7", 3),
            numbered(name, x, "branch7x7dbl", 5),
            chain(name, _average(x), "branch_pool"),
        )
    x = together(
        numbered("Mixed_7a", x, "branch3x3", 2),
        numbered("Mixed_7a", x, "branch7x7x3", 4),
        _largest(x, 2, "VALID"),
    )
    for name in ("Mixed_7b", "Mixed_7c"):
        pooled = _average(x) if name == "Mixed_7b" else _largest(x, 1, _SAME)
        x = together(
            chain(name, x, "branch1x1"),
            *forked(name, numbered(name, x, "branch3x3", 1), "branch3x3_2"),
            *forked(name, numbered(name, x, "branch3x3dbl", 2), "branch3x3dbl_3"),
            chain(name, pooled, "branch_pool"),
        )
    return x.mean(axis=(1, 2))


def _largest(x: Array, stride: int, padding: str) -> Array:
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def _average(x: Array) -> Array:
    """Of 3 × 3 pixels, without those outside of the picture."""
    window, strides = (1, 3, 3, 1), (1, 1, 1, 1)
    add = lambda values: jax.lax.reduce_window(values, 0.0, jax.lax.add, window, strides, _SAME)
    return add(x) / add(jnp.ones_like(x[:1, :, :, :1]))
