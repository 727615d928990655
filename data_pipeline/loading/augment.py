"""Small random changes of position, size, roll and side, applied on the accelerator.

A training image, its nine hint channels, its face mask and its valid area are stored once, around
the face and with a margin, and are warped together so that they stay aligned.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in the brightness of a pixel (Rec. 601)."""

_DARK, _FOLDS = 0.15, 0.6  # of `recolor`: where a white shirt next to a black suit stays clothes
_SHIRT, _SHIRT_EDGE = 0.25, 0.1  # by how much shirts are brighter than suits, and how sharply


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the changes.

    Attributes:
        scale: factors are log-uniform in [1 / scale, scale].
        shift: greatest shift, as a fraction of the image's side.
        roll_degrees: standard deviation of the roll.
        roll_limit: greatest roll, in degrees.
        mirror: share of mirrored images.
    """

    scale: float = 1.25
    shift: float = 0.10
    roll_degrees: float = 12.0
    roll_limit: float = 30.0
    mirror: float = 0.5


def sample_transforms(key, count: int, cfg: AugmentConfig):
    """Sample `count` changes: {"scale" (n,), "angle" (n,) radians clockwise as seen, "shift" (n,
    2), "mirror" (n,) bool}. The angle is normally distributed and clipped."""
    k = jax.random.split(key, 4)
    limit = jnp.log(jnp.float32(cfg.scale))
    angle = jnp.clip(
        jax.random.normal(k[1], (count,)) * cfg.roll_degrees, -cfg.roll_limit, cfg.roll_limit
    )
    return {
        "scale": jnp.exp(jax.random.uniform(k[0], (count,), minval=-limit, maxval=limit)),
        "angle": jnp.deg2rad(angle),
        "shift": jax.random.uniform(k[2], (count, 2), minval=-cfg.shift, maxval=cfg.shift),
        "mirror": jax.random.uniform(k[3], (count,)) < cfg.mirror,
    }


def identity_transforms(count: int):
    """Transforms that only crop the middle."""
    return {
        "scale": jnp.ones((count,)),
        "angle": jnp.zeros((count,)),
        "shift": jnp.zeros((count, 2)),
        "mirror": jnp.zeros((count,), bool),
    }


def source_coordinates(transforms, stored: int | jax.Array, size: int):
    """(B, size, size, 2) as (x, y): where each pixel of a (size, size) result is in the (stored,
    stored) source. At scale 1 their pixels have the same size; pixel centers are at integers.
    """
    center = (size - 1) / 2
    grid = jnp.arange(size, dtype=jnp.float32) - center
    x, y = jnp.meshgrid(grid, grid)
    n = transforms["scale"].shape[0]
    shift = transforms["shift"] * size
    x = x[None] - shift[:, 0].reshape(n, 1, 1)
    y = y[None] - shift[:, 1].reshape(n, 1, 1)
    cos = (jnp.cos(transforms["angle"]) / transforms["scale"]).reshape(n, 1, 1)
    sin = (jnp.sin(transforms["angle"]) / transforms["scale"]).reshape(n, 1, 1)
    sx, sy = cos * x + sin * y, -sin * x + cos * y
    sx = jnp.where(transforms["mirror"].reshape(n, 1, 1), -sx, sx)
    middle = (stored - 1) / 2
    return jnp.stack([sx + middle, sy + middle], axis=-1)


def warp(images, coordinates):
    """Bilinear samples of `images` (B, H, W, C; any dtype) at `coordinates` (B, h, w, 2); float32,
    edges repeated.
    """
    height, width = images.shape[1:3]
    x = jnp.clip(coordinates[..., 0], 0.0, width - 1.0)
    y = jnp.clip(coordinates[..., 1], 0.0, height - 1.0)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    x0, y0 = x0.astype(jnp.int32), y0.astype(jnp.int32)
    x1, y1 = jnp.minimum(x0 + 1, width - 1), jnp.minimum(y0 + 1, height - 1)
    pick = jax.vmap(lambda image, yy, xx: image[yy, xx])
    top = (
        pick(images, y0, x0).astype(jnp.float32) * (1 - fx)
        + pick(images, y0, x1).astype(jnp.float32) * fx
    )
    bottom = (
        pick(images, y1, x0).astype(jnp.float32) * (1 - fx)
        + pick(images, y1, x1).astype(jnp.float32) * fx
    )
    return top * (1 - fy) + bottom * fy


def valid_area(coordinates, rectangle):
    """(B, h, w, 1): 1 where a sample is inside the photo, 0 in the padding.

    Args:
        coordinates: (B, h, w, 2), where a pixel's center is at an integer.
        rectangle: (B, 4), the edges x0, y0, x1, y1 in source pixels, where pixel i reaches from i
            to i + 1.
    """
    x, y = coordinates[..., 0], coordinates[..., 1]
    r = (rectangle - 0.5)[:, :, None, None]
    inside = (x >= r[:, 0]) & (y >= r[:, 1]) & (x <= r[:, 2]) & (y <= r[:, 3])
    return inside[..., None].astype(jnp.float32)


def turn_normals(normals, transforms):
    """Normals (B, H, W, 3; x right, y up, z to the viewer) of an image that was mirrored and
    rolled.
    """
    n = transforms["angle"].shape[0]
    cos, sin = (
        jnp.cos(transforms["angle"]).reshape(n, 1, 1),
        jnp.sin(transforms["angle"]).reshape(n, 1, 1),
    )
    x = jnp.where(transforms["mirror"].reshape(n, 1, 1), -normals[..., 0], normals[..., 0])
    y = normals[..., 1]
    # Clockwise as seen, with y up.
    return jnp.stack([cos * x + sin * y, -sin * x + cos * y, normals[..., 2]], axis=-1)


def plain_background(color, slope, size: int):
    """Smooth backgrounds (B, size, size, 3) in [0, 1] of `color` (B, 3), up to a quarter brighter
    or darker across and towards the
    corners: `slope` (B, 3) in [-1, 1] along x, along y and outwards.
    """
    across = jnp.linspace(-1.0, 1.0, size)
    x, y = jnp.meshgrid(across, across)
    shade = jnp.einsum(
        "bk,khw->bhw",
        slope,
        jnp.stack([0.12 * x, 0.12 * y, 0.07 * (x**2 + y**2 - 1)]),
        precision="highest",
    )
    return jnp.clip(color[:, None, None] * (1 + shade[..., None]), 0.0, 1.0)


def recolor(pictures, mask, color, brightness, shirts):
    """Pictures (B, H, W, 3) in [0, 1] with another `color` (B, 3) where `mask` (B, H, W, 1) is 1.

    Folds and seams stay, more weakly: a pixel as bright as `brightness` (B,) gets the color itself,
    others are up to a half darker or brighter. Where `shirts` (B,) is true, what is much brighter
    stays as it is: the white shirt of a dark suit.
    """
    luma = jnp.einsum("bhwc,c->bhw", pictures, jnp.asarray(LUMA), precision="highest")
    relative = (luma + _DARK) / (brightness[:, None, None] + _DARK)
    shade = jnp.clip(relative**_FOLDS, 0.5, 1.5)[..., None]
    brighter = (luma - brightness[:, None, None] - _SHIRT) / _SHIRT_EDGE
    kept = jnp.clip(brighter, 0.0, 1.0) * shirts[:, None, None].astype(jnp.float32)
    mask = mask * (1 - kept[..., None])
    return pictures * (1 - mask) + jnp.clip(color[:, None, None] * shade, 0.0, 1.0) * mask
