"""The nine hint channels: a head as the control branch sees it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.rasterizer import rasterize
from caphuman_jax.head.spherical_harmonics import shading

CHANNELS = 9


@functools.partial(jax.jit, static_argnames=("height", "width", "with_alpha"))
def render_hints_batch(
    model: HeadModel, heads: Head, height: int, width: int, with_alpha: bool = False
):
    """Hints (B,H,W,9) float32 of heads with a leading axis B, on height × width pixels.

    Channels 0-2: normal in the viewer's frame (x right, y up, z towards the viewer), interpolated
    and not re-normalized, in [-1,1]; 3-5: albedo RGB in [0,1]; 6-8: albedo × shading, clipped to
    [0,1], so that hints kept as 8 bits for training and hints made afresh are the same. Heads whose
    albedo is a texture are DECA's, and drawn as `deca.render_hints` does: the texture looked up at
    every pixel, nothing clipped. Background 0. The head is placed relative to the picture: its
    position in `head.size` is scaled to height and width (by the height, about the center, where
    the aspect differs). With `with_alpha`, also where the head is, (B,H,W,1) float32 0 or 1."""
    heads = jax.vmap(lambda head: fit_to_size(head, height, width))(heads)
    points, normals = jax.vmap(lambda head: posed(model, head))(heads)
    triangles = jnp.asarray(model.triangles)
    clip = model.clips_hints(heads.albedo.shape[1:])
    ids, weights = rasterize(
        points, triangles, height, width, cull_backfaces=not model.double_sided
    )

    def shade(head, normals, ids, weights):
        normal, albedo = model.surface(normals, head.albedo, ids, weights)
        rendered = albedo * shading(normal, head.light)
        return jnp.concatenate(
            [normal, albedo, jnp.clip(rendered, 0, 1) if clip else rendered], axis=-1
        )

    hints = jax.vmap(shade)(heads, normals, ids, weights)
    return (hints, (ids >= 0).astype(jnp.float32)[..., None]) if with_alpha else hints


def render_hints(model: HeadModel, head: Head, height: int, width: int, with_alpha: bool = False):
    """`render_hints_batch` for one head: (H,W,9), and with `with_alpha` also (H,W,1)."""
    result = render_hints_batch(
        model, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], head), height, width, with_alpha
    )
    return jax.tree.map(lambda leaf: leaf[0], result)


def fit_to_size(head: Head, height: int, width: int) -> Head:
    """The head at the same place relative to a picture of another size: scaled by the height,
    centered where the aspect differs.
    """
    factor = height / head.size[0]
    new = jnp.asarray([width, height], jnp.float32)
    translation = (head.translation - head.size[::-1] / 2) * factor + new / 2
    return dataclasses.replace(
        head, scale=head.scale * factor, translation=translation, size=new[::-1]
    )
