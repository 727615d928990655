"""Norms and activations whose backward pass is written out, for networks that compute in bfloat16
or float16.

Between the products of a diffusion network there is little arithmetic and much memory: what these
cost is how often they read and write the features. Automatic differentiation keeps what it could
compute again and joins gradients that nobody needs joined. Float32, the type of parity and of CPUs,
takes the plain way elsewhere."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float


def is_half(dtype) -> bool:
    """Whether this module serves a dtype."""
    return dtype in (jnp.bfloat16, jnp.float16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float,
    silu: bool,
    platform: str,
) -> Float[Array, "b h w c"]:
    """Group normalization (arXiv 1803.08494), then SiLU if `silu`: x (B, H, W, C), scale and bias
    (C,) float32 → like x.

    One reading for the statistics (the variance as E[x²] − E[x]² in float32, as in Flax) and one to
    normalize; backward twice the two arrays."""
    return _group_norm(x, scale, bias, groups, eps, silu, platform)[0]


def _group_norm(x, scale, bias, groups, eps, silu, platform):
    x32, pixels = x.astype(jnp.float32), x.shape[1] * x.shape[2]
    mean, of_squares = (
        _over_groups(total / pixels, groups)
        for total in _sums(
            x32, jnp.square(x32), parts=8 if platform == "gpu" and pixels >= 4096 else 1
        )
    )
    variance = of_squares - jnp.square(mean)
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
    factor = inverse * scale[None]
    offset = bias[None] - mean * factor
    z = x32 * _spread(factor) + _spread(offset)
    y = jax.nn.silu(z) if silu else z
    return y.astype(x.dtype), (x, mean, inverse, factor, offset, scale)


def _group_norm_backward(groups, eps, silu, platform, kept, gradient):
    x, mean, inverse, factor, offset, scale = kept

    def before_silu(*after):
        """x and the gradient there, float32. On a GPU made again for each use: XLA would write the
        latter down, to be read twice.

        after: what makes one use another to the compiler than the rest.
        """
        again = (
            jax.lax.optimization_barrier((x, gradient, *after))
            if silu and platform == "gpu"
            else (x, gradient)
        )
        x32, dz = again[0].astype(jnp.float32), again[1].astype(jnp.float32)
        if silu:
            z = x32 * _spread(factor) + _spread(offset)
            sigmoid = jax.nn.sigmoid(z)
            dz = dz * (sigmoid * (1 + z * (1 - sigmoid)))
        return x32, dz

    pixels = x.shape[1] * x.shape[2]
    (x32, first_use), (_, dz) = before_silu(), before_silu(mean)
    by_bias, products = _sums(
        dz, first_use * x32, parts=(8 if pixels > 256 else 16) if platform == "gpu" else 1
    )
    by_scale = (products - mean * by_bias) * inverse
    # dx = inverse · (g − mean(g) − x̂ · mean(g · x̂)) with g = dz · scale and means over a group;
    # x̂ = (x − mean) · inverse.
    first = _over_groups(scale[None] * by_bias, groups) / pixels
    second = _over_groups(scale[None] * by_scale, groups) / pixels * jnp.square(inverse)
    x32, dz = before_silu(by_bias)
    dx = dz * _spread(factor) - x32 * _spread(second) + _spread(mean * second - inverse * first)
    return dx.astype(x.dtype), by_scale.sum(axis=0), by_bias.sum(axis=0)


group_norm.defvjp(_group_norm, _group_norm_backward)


@jax.custom_vjp
def geglu_layer(
    x: Float[Array, "*batch k"], kernel: Float[Array, "k n2"], bias: Float[Array, " n2"]
) -> Float[Array, "*batch n2//2"]:
    """value · GELU(gate) with [value, gate] = x @ kernel + bias (arXiv 2002.05202), the exact GELU
    computed in float32.

    x (…, K), kernel (K, 2N), bias (2N,), of one dtype → (…, N). Where it is differentiated the
    halves are products of their own: their gradients, side by side, would have to be written once
    more; without, one product is faster than two."""
    value, gate = jnp.split(x @ kernel + broadcast_to_rank(bias, x.ndim), 2, axis=-1)
    return geglu(value, gate)


def _geglu_layer(x, kernel, bias):
    half = bias.shape[0] // 2
    value, gate = (
        x @ kernel[:, part] + broadcast_to_rank(bias[part], x.ndim)
        for part in (slice(half), slice(half, None))
    )
    return geglu(value, gate), (x, kernel, value, gate)


def _geglu_layer_backward(kept, gradient):
    x, kernel, value, gate = kept
    half = kernel.shape[1] // 2
    value32, gate32, d = (a.astype(jnp.float32) for a in (value, gate, gradient))
    below = _normal_below(gate32)
    density = jnp.exp(-0.5 * jnp.square(gate32)) * jnp.float32(1 / math.sqrt(2 * math.pi))
    sides = (
        (d * gate32 * below).astype(x.dtype),
        (d * value32 * (below + gate32 * density)).astype(x.dtype),
    )
    rows = tuple(range(x.ndim - 1))
    by_kernel = [jnp.tensordot(x, side, (rows, rows)) for side in sides]
    by_bias = [side.astype(jnp.float32).sum(axis=rows).astype(side.dtype) for side in sides]
    by_x = sides[0] @ kernel[:, :half].T + sides[1] @ kernel[:, half:].T
    return by_x, jnp.concatenate(by_kernel, axis=1), jnp.concatenate(by_bias)


geglu_layer.defvjp(_geglu_layer, _geglu_layer_backward)


def geglu(value: Float[Array, "*shape"], gate: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """value · GELU(gate), the exact one computed in float32."""
    return (value.astype(jnp.float32) * gelu(gate.astype(jnp.float32))).astype(value.dtype)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU of float32, x · Φ(x), by erf, within 1e-6. By erfc it costs more, and is
    closer only in the far negative tail, where the result itself is about as small as that.
    """
    return x * _normal_below(x)


def _normal_below(x):
    return 0.5 + 0.5 * jax.lax.erf(x * jnp.float32(math.sqrt(0.5)))


def _sums(*arrays: jax.Array, parts: int) -> list[jax.Array]:
    """Sum each (B, H, W, C) over the picture → (B, C).

    With parts > 1, in two stages, `parts` of the picture first. A GPU needs that: XLA gives 32
    channels of a picture to one block of threads, and these are too few blocks to keep the memory
    busy. The best number of parts was measured on an H100 (docs/notes/performance.md)."""
    batch, height, width, channels = arrays[0].shape
    parts = math.gcd(height, parts)
    if parts == 1:
        return [x.sum(axis=(1, 2)) for x in arrays]
    partial = [
        x.reshape(batch, parts, height // parts * width, channels).sum(axis=2) for x in arrays
    ]
    return [
        x.sum(axis=1) for x in jax.lax.optimization_barrier(partial)
    ]  # or the compiler would make one sum of both


def _over_groups(per_channel: jax.Array, groups: int) -> jax.Array:
    """(B, C) → the mean over each group's channels, for every channel."""
    batch, channels = per_channel.shape
    mean = per_channel.reshape(batch, groups, -1).mean(axis=2, keepdims=True)
    return jnp.broadcast_to(mean, (batch, groups, channels // groups)).reshape(batch, channels)


def _spread(per_channel: jax.Array) -> jax.Array:
    return per_channel[:, None, None, :]
