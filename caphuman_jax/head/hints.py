"""The nine hint channels: a head as the control branch sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.rasterizer import rasterize
from caphuman_jax.head.spherical_harmonics import shading
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import kept_programs


@kept_programs.jit(static_argnames=("height", "width", "with_alpha"))
def render_hints_batch(
    model: HeadModel, heads: Head, height: int, width: int, with_alpha: bool = False
):
    """Render heads as the control branch sees them.

    The head is placed relative to the picture: its position in `head.size` is scaled to height and
    width (by the height, about the center, where the aspect differs).

    Args:
        model: The heads' model.
        heads: Heads with a leading axis B.
        height, width: Of the hints, in pixels.
        with_alpha: Also return where the heads are.

    Returns:
        Hints (B,H,W,9) float32, background 0. Channels 0-2: normal in the viewer's frame (x right,
        y up, z towards the viewer), interpolated and not re-normalized, in [-1,1]. 3-5: albedo RGB
        in [0,1]. 6-8: albedo × shading, clipped to [0,1], so that stored (8-bit) and newly rendered
        hints are the same, unless the model says otherwise (`HeadModel.clips_hints`).
        With `with_alpha` also (B,H,W,1) float32, 1 on the head, else 0.
    """
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
    """`render_hints_batch` for one head, NumPy arrays: (H,W,9), and with `with_alpha` also
    (H,W,1)."""
    heads = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], head)
    result = render_hints_batch(model, heads, height, width, with_alpha)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], result)


def fit_to_size(head: Head, height: float, width: float) -> Head:
    """The head at the same place relative to a picture of another size: scaled by the height,
    centered where the aspect differs.
    """
    factor = height / head.size[0]
    new = np.asarray([width, height], np.float32)
    translation = (head.translation - head.size[::-1] / 2) * factor + new / 2
    return dataclasses.replace(
        head, scale=head.scale * factor, translation=translation, size=new[::-1]
    )


def fit_to_aspect(head: Head, height: int, width: int) -> Head:
    """The head in a picture of height × width pixels that is to be made, by `fit_to_size`; as it is
    where its own picture has that aspect ratio.

    A position counts parts of `head.size` (`editing.from_numbers`). So a head has to be in a
    picture of the wanted aspect ratio before numbers are applied to it.
    """
    own_height, own_width = (float(side) for side in np.asarray(head.size))
    same = own_height * width == own_width * height
    return head if same else fit_to_size(head, height, width)


def pack_hints(hints: Float[Array, "*b h w 9"]) -> UInt8[Array, "*b h w 9"]:
    """Hints (…,H,W,9) float → 8 bits (…,H,W,9): normals as n/2 + 1/2, albedo and render as
    they are, all clipped to [0,1] and rounded. NumPy or JAX arrays."""
    xp = jnp if isinstance(hints, jax.Array) else np
    levels = xp.concatenate([hints[..., :3] / 2 + 0.5, hints[..., 3:]], axis=-1)
    return xp.round(xp.clip(levels, 0, 1) * 255).astype(xp.uint8)


def unpack_hints(
    values: Float[Array, "*b h w 9"], turn: Callable[[Array], Array] | None = None
) -> Float[Array, "*b h w 9"]:
    """Hints (…,H,W,9) of what `pack_hints` gave, 0 where there is no head.

    Args:
        values: (…,H,W,9) float in [0,1]: 8 bits / 255, possibly resampled.
        turn: What becomes of the normals (…,H,W,3), if the picture was mirrored or rolled.
    """
    xp = jnp if isinstance(values, jax.Array) else np
    normals = values[..., :3] * 2 - 1
    normals = turn(normals) if turn else normals
    # Above 0 by more than the interpolation at the head's edge leaves.
    head = (xp.sum(values[..., 3:6], axis=-1, keepdims=True) > 0.01).astype(xp.float32)
    return xp.concatenate([normals, values[..., 3:]], axis=-1) * head


def to_picture(packed: Shaped[Array, "*b h w 9"]) -> Shaped[Array, "*b 3*h w 3"]:
    """Packed hints (…,H,W,9) as one picture (…,3H,W,3): normals, albedo and render below each
    other, as records store them."""
    xp = jnp if isinstance(packed, jax.Array) else np
    return xp.concatenate([packed[..., i : i + 3] for i in (0, 3, 6)], axis=-3)


def from_picture(picture: Shaped[Array, "*b h3 w 3"]) -> Shaped[Array, "*b h w 9"]:
    """Inverse of `to_picture`."""
    xp = jnp if isinstance(picture, jax.Array) else np
    return xp.concatenate(xp.split(picture, 3, axis=-3), axis=-1)
