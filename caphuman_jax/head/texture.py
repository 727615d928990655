"""Albedo as a texture: FLAME's linear space of textures, and looking one up at pixels."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from caphuman_jax.head.rasterizer import interpolate
from caphuman_jax.nn.typing import Array

_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "basis"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TextureSpace:
    """FLAME's albedo: mean (S,S,3) and basis (N,S,S,3), RGB where [0,1] is black to white."""

    mean: Array
    basis: Array


def texture(space: TextureSpace, coefficients: Float[Array, " n"]) -> Float[Array, "s s 3"]:
    """Albedo (S,S,3) RGB, about [0,1], of coefficients (n,), n at most the number of components;
    row 0 is v = 1.
    """
    count = coefficients.shape[-1]
    return jnp.asarray(space.mean) + jnp.tensordot(
        coefficients, jnp.asarray(space.basis)[:count], axes=1, precision=_HIGHEST
    )


def sample_texture(image: Float[Array, "h w c"], uv: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
    """Bilinear look-up (…,C) of a texture (S,S,C) at uv (…,2) in [0,1], v up; 0 beyond the
    texture's edge.

    The texture spans [0,1], so the outermost pixels' centers lie half a pixel inside
    ("align_corners" off)."""
    height, width = image.shape[:2]
    x, y = uv[..., 0] * width - 0.5, (1 - uv[..., 1]) * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros((), image.dtype)
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = jnp.where(inside, row_weight * column_weight, 0)
            at = (
                jnp.clip(row, 0, height - 1).astype(jnp.int32),
                jnp.clip(column, 0, width - 1).astype(jnp.int32),
            )
            total = total + image[at] * weight[..., None]
    return total


def texture_at(
    image: Float[Array, "s s c"],
    uv: Float[Array, "u 2"],
    uv_triangles: Int[Array, "t 3"],
    ids: Int[Array, "h w"],
    weights: Float[Array, "h w 3"],
) -> Float[Array, "h w c"]:
    """Colors (H,W,C) of a texture (S,S,C) at pixels, 0 outside the head.

    Args:
        image: The texture.
        uv: (U,2) texture coordinates, v up.
        uv_triangles: (T,3) int32, which of them a triangle's corners have.
        ids: (H,W) triangle numbers, -1 outside the head.
        weights: (H,W,3) barycentric weights.
    """
    colors = sample_texture(image, interpolate(jnp.asarray(uv), uv_triangles, ids, weights))
    return jnp.where((ids >= 0)[..., None], colors, 0)
