"""Norms, convolutions and changes of resolution. Pictures are NHWC; weights and norms
are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from caphuman_jax.nn import fp8, fused
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import lecun_normal
from caphuman_jax.nn.typing import Rngs


class GroupNorm(nnx.Module):
    """Group normalization over height, width and the channels of each group (arXiv 1803.08494), in
    float32.

    Args:
        channels: number of channels; must be a multiple of `groups`.
        eps: added to the variance; 1e-5 in residual blocks, 1e-6 before transformers and in the
        VAE.
    """

    def __init__(
        self, channels: int, groups: int = 32, eps: float = 1e-5, *, compute: ComputeConfig
    ):
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be split into {groups} groups")
        self.groups = groups
        self.eps = eps
        self.compute = compute
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"], silu: bool = False) -> Float[Array, "b h w c"]:
        """x (B, H, W, C) → the same shape and dtype; `silu`: with SiLU after it."""
        if fused.is_half(x.dtype):
            return fused.group_norm(
                x,
                self.scale[...],
                self.bias[...],
                self.groups,
                self.eps,
                silu,
                self.compute.platform_name(),
            )
        batch, _, _, channels = x.shape
        x32 = x.astype(jnp.float32)

        # Averages are taken over the picture first and over the group's channels second, and the
        # variance after the mean: the large array is never reshaped, which is fast everywhere, and
        # nothing is lost to cancellation.
        def group_mean(per_channel):
            grouped = per_channel.reshape(batch, self.groups, -1).mean(axis=2, keepdims=True)
            return jnp.broadcast_to(grouped, (batch, self.groups, channels // self.groups)).reshape(
                batch, 1, 1, channels
            )

        mean = group_mean(x32.mean(axis=(1, 2)))
        variance = group_mean(jnp.square(x32 - mean).mean(axis=(1, 2)))
        # One multiplication and one addition a number: x minus the mean need not be kept.
        scale, bias = (broadcast_to_rank(p[...], x.ndim) for p in (self.scale, self.bias))
        factor = jax.lax.rsqrt(variance + self.eps) * scale
        normed = (x32 * factor + (bias - mean * factor)).astype(x.dtype)
        return jax.nn.silu(normed) if silu else normed


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, in float32."""

    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """x (..., C) → the same shape and dtype."""
        x32 = x.astype(jnp.float32)
        centered = x32 - x32.mean(axis=-1, keepdims=True)
        variance = jnp.square(centered).mean(axis=-1, keepdims=True)
        scale, bias = (broadcast_to_rank(p[...], x.ndim) for p in (self.scale, self.bias))
        return (centered * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


class Linear(nnx.Linear):
    """nnx.Linear whose kernel may be `fp8.Fp8`."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """(..., inputs) → (..., outputs)."""
        kernel = self.kernel[...]
        if not isinstance(kernel, fp8.Fp8):
            return super().__call__(inputs, out_sharding)
        bias = None if self.bias is None else self.bias[...]
        return fp8.product(inputs.astype(self.dtype), kernel, bias)


def linear(
    inputs: int,
    outputs: int,
    *,
    compute: ComputeConfig,
    rngs: Rngs,
    use_bias: bool = True,
    zero: bool = False,
) -> Linear:
    """Dense layer on the last axis; on pictures it is the 1×1 convolution. `zero` starts it at
    zero.
    """
    kernel_init = nnx.initializers.zeros_init() if zero else lecun_normal
    return Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=compute.dtype,
        rngs=rngs,
    )


def conv(
    inputs: int,
    outputs: int,
    *,
    compute: ComputeConfig,
    rngs: Rngs,
    stride: int = 1,
    padding=((1, 1), (1, 1)),
    zero: bool = False,
) -> nnx.Conv:
    """3×3 convolution. `zero` starts it at zero; `padding` is ((top, bottom), (left, right))."""
    kernel_init = nnx.initializers.zeros_init() if zero else lecun_normal
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(3, 3),
        strides=stride,
        padding=padding,
        kernel_init=kernel_init,
        dtype=compute.dtype,
        rngs=rngs,
    )


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Nearest-neighbor doubling: (B, H, W, C) → (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def convolve_upsampled(
    layer: nnx.Conv, x: Float[Array, "b h w c"], compute: ComputeConfig = ComputeConfig()
) -> Float[Array, "b 2*h 2*w o"]:
    """`layer(upsample(x))` for a 3×3 convolution of stride 1, with 4/9 of its multiplications: (B,
    H, W, C) → (B, 2H, 2W, outputs).

    The layer's kernel may have been folded beforehand (`fold_upsampling`).
    """
    kernel, (batch, height, width, _) = layer.kernel[...], x.shape
    taps = folded_kernel(kernel, layer.dtype) if kernel.shape[0] == 3 else kernel
    convolve = _convolve_2x2_on_cpu if compute.platform_name() == "cpu" else _convolve_2x2
    every = convolve(x.astype(layer.dtype), taps)
    every = every.reshape(batch, height + 1, width + 1, 2, 2, -1)
    rows = [
        jnp.stack([every[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    h = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)
    assert layer.bias is not None
    return h + broadcast_to_rank(layer.bias[...].astype(layer.dtype), h.ndim)


def _convolve_2x2(
    x: Float[Array, "b h w c"], taps: Float[Array, "2 2 c o"]
) -> Float[Array, "b h+1 w+1 o"]:
    dimensions = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, taps, (1, 1), padding, dimension_numbers=dimensions)


@jax.custom_vjp
def _convolve_2x2_on_cpu(x, taps):
    """The same; for its kernel's gradient, XLA has no fast convolution on CPUs."""
    return _convolve_2x2(x, taps)


def _convolve_2x2_forward(x, taps):
    return _convolve_2x2(x, taps), (x, taps)


def _convolve_2x2_backward(kept, wanted):
    x, taps = kept
    (to_x,) = jax.vjp(lambda x: _convolve_2x2(x, taps), x)[1](wanted)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = wanted.shape[1:3]
    products = [
        jnp.einsum(
            "bhwc,bhwo->co",
            x[:, a : a + height, b : b + width],
            wanted,
            preferred_element_type=jnp.float32,
        )
        for a in (0, 1)
        for b in (0, 1)
    ]
    return to_x, jnp.stack(products).reshape(taps.shape).astype(taps.dtype)


_convolve_2x2_on_cpu.defvjp(_convolve_2x2_forward, _convolve_2x2_backward)


def folded_kernel(kernel: Float[Array, "3 3 c o"], dtype) -> Float[Array, "2 2 c 4*o"]:
    """A 3×3 kernel (3, 3, C, outputs) as the four 2×2 ones that it comes to after nearest-neighbor
    doubling: (2, 2, C, 4·outputs) in `dtype`.

    Two of three rows (and columns) of the kernel meet the same pixel, which of them depends on
    whether the output's row is even: so the four outputs of a pixel are four 2×2 convolutions of x,
    with rows and columns of the kernel added up."""
    kind = jnp.finfo(
        dtype
    )  # rounded first, as where it is used as it is, so that a kernel kept in that type gives the same  # noqa: E501
    kernel = jax.lax.reduce_precision(kernel.astype(jnp.float32), kind.nexp, kind.nmant)
    pairs = lambda k: jnp.stack(
        [jnp.stack([k[0], k[1] + k[2]]), jnp.stack([k[0] + k[1], k[2]])]
    )  # (3, …) → (even or odd, 2, …)
    kernel = pairs(
        jnp.moveaxis(pairs(kernel), 2, 0)
    )  # (column parity, 2, row parity, 2, C, outputs)
    return kernel.transpose(3, 1, 4, 2, 0, 5).astype(dtype).reshape(2, 2, kernel.shape[4], -1)


def fold_upsampling(params: Mapping[str, Any], dtype) -> dict[str, Any]:
    """A network's parameters with the kernels of its layers "upsample" folded, for loops: once
    before them instead of at every step.

    Kernels that are not plain arrays (8 bits, parts) stay as they are.
    """

    def folded(name, part):
        if name == "upsample" and isinstance(part["kernel"], jax.Array):
            return {**part, "kernel": folded_kernel(part["kernel"], dtype)}
        return fold_upsampling(part, dtype) if isinstance(part, Mapping) else part

    return {name: folded(name, part) for name, part in params.items()}


def space_to_depth(
    x: Float[Array, "b h w c"], patch: int
) -> Float[Array, "b h//{patch} w//{patch} c*{patch}**2"]:
    """(B, H, W, C) → (B, H/patch, W/patch, patch²·C), channels ordered (row, column, channel); H, W
    multiples of patch.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // patch, width // patch, patch * patch * channels
    )


def depth_to_space(
    x: Float[Array, "b h w c"], patch: int
) -> Float[Array, "b h*{patch} w*{patch} c//{patch}**2"]:
    """Inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height * patch, width * patch, channels // patch**2
    )


def _gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """CLIP's activation, x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": _gelu,
    "gelu_tanh": jax.nn.gelu,
}
"""Activations of CLIP's encoders by the name that a configuration gives them."""
