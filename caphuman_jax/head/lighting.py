"""Light and albedo of a face, estimated from a photo. Colors are display values; color = albedo ×
shading (see sh).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from caphuman_jax.head import topology
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import project
from caphuman_jax.head.rasterizer import interpolate, rasterize
from caphuman_jax.head.spherical_harmonics import WHITE, sh_basis, shading
from caphuman_jax.nn.typing import Array

# Colors of what a photo seldom shows, as multiples of the brightness of the face's skin.
_DEFAULTS = {
    topology.LEFT_EYE: (1.25, 1.22, 1.2),
    topology.RIGHT_EYE: (1.25, 1.22, 1.2),
    topology.TONGUE: (0.75, 0.36, 0.36),
    topology.LOWER_TEETH: (1.2, 1.16, 1.08),
    topology.UPPER_TEETH: (1.2, 1.16, 1.08),
    topology.MOUTH_INSIDE: (0.45, 0.15, 0.15),
}
_HIGHEST = jax.lax.Precision.HIGHEST


def estimate_appearance(
    model: HeadModel,
    heads,
    photos: Float[Array, "b h w 3"],
    masks: Shaped[Array, "b h w"] | None = None,
):
    """Light and albedo of a batch of fitted heads from their photos: the same heads with those two
    filled in.

    heads: `Head` with a leading axis B; photos (B,H,W,3) float32 in [0,1] of one size, display
    values; masks (B,H,W) bool or float in [0,1]: where the photo shows this face's skin and eyes
    (elsewhere, as on hair or a hand, nothing is believed). Light is scaled so that the mean shading
    of the seen skin is 1: exposure and the tint of the light stay in the albedo, which so keeps the
    color that the photo shows. Vertices that are not seen take the mirrored side's color, then
    that of their neighbors, then a default (the face's median skin; off-white teeth and eyes; a
    dark mouth)."""
    if masks is None:
        masks = np.ones(photos.shape[:3], np.float32)
    return _estimate(
        model, heads, jnp.asarray(photos, jnp.float32), jnp.asarray(masks, jnp.float32)
    )


@jax.jit
def _estimate(model, heads, photos, masks):
    _, height, width = photos.shape[:3]
    points, normals = jax.vmap(lambda head: posed(model, head))(heads)
    ids, weights = rasterize(points, jnp.asarray(model.triangles), height, width)
    depth = jax.vmap(lambda p, i, w: interpolate(p[:, 2:], model.triangles, i, w))(
        points, ids, weights
    )
    depth = jnp.where((ids >= 0)[..., None], depth, jnp.inf)[..., 0]
    light, albedo = jax.vmap(functools.partial(_appearance, model))(
        photos, masks, points, normals, depth, heads.scale
    )
    return dataclasses.replace(heads, light=light, albedo=albedo)


def posed(model: HeadModel, head) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """Vertices (V,3) in pixels and unit normals (V,3) in the viewer's frame, of one head."""
    shape = model.vertices(head.identity, head.expression)
    normals = topology.vertex_normals(shape, model.triangles, model.vertex_triangles)
    return project(shape, head.rotation, head.scale, head.translation), jnp.matmul(
        normals, head.rotation.T, precision=_HIGHEST
    )


def landmarks_in_picture(model: HeadModel, head) -> np.ndarray:
    """A head's landmarks (478, 2) in pixels of its picture; those that the model lacks lie in the
    middle of the others.
    """
    points = np.array(model.landmarks(posed(model, head)[0])[:, :2], np.float64)
    valid = np.asarray(model.landmark_valid)
    points[~valid] = points[valid].mean(axis=0)
    return points


def sample(image: Float[Array, "h w c"], xy: Float[Array, "n 2"]) -> Float[Array, "n c"]:
    """Bilinear samples (N,C) of an image (H,W,C) at positions (N,2) in pixels; positions outside
    take the border's value.
    """
    height, width = image.shape[:2]
    limit = jnp.asarray([[width - 1, height - 1]], jnp.float32)
    xy = jnp.clip(xy - 0.5, 0, limit)
    low = jnp.floor(xy)
    part = xy - low
    x0, y0 = low[:, 0].astype(jnp.int32), low[:, 1].astype(jnp.int32)
    x1, y1 = jnp.minimum(x0 + 1, width - 1), jnp.minimum(y0 + 1, height - 1)
    px, py = part[:, :1], part[:, 1:]
    return (image[y0, x0] * (1 - px) + image[y0, x1] * px) * (1 - py) + (
        image[y1, x0] * (1 - px) + image[y1, x1] * px
    ) * py


def _appearance(model, photo, mask, points, normals, depth, scale):
    xy = points[:, :2]
    color = sample(photo, xy)
    seen = _visibility(model, points, normals, depth, scale) * sample(mask[..., None], xy)[:, 0]
    skin = jnp.where(jnp.asarray(model.parts) == topology.SKIN, seen, 0)
    light = _light(color, normals, skin)
    albedo = jnp.clip(color / jnp.maximum(shading(normals, light), 0.3), 0, 1)
    return light, _fill(model, albedo, seen, skin)


def _visibility(model, points, normals, depth, scale):
    """Trust (V,) in a vertex's color: unhidden, turned to the viewer, inside the picture, on the
    face.
    """
    height, width = depth.shape
    xy = points[:, :2]
    column = jnp.clip(xy[:, 0], 0, width - 1).astype(jnp.int32)
    row = jnp.clip(xy[:, 1], 0, height - 1).astype(jnp.int32)
    inside = (xy[:, 0] >= 0) & (xy[:, 0] < width) & (xy[:, 1] >= 0) & (xy[:, 1] < height)
    # The pixel's depth is that of its center, so a slanted surface differs by a pixel's worth of
    # slope.
    slack = 0.03 * scale + 1.5
    unhidden = points[:, 2] <= depth[row, column] + slack
    facing = jnp.clip((normals[:, 2] - 0.15) / 0.35, 0, 1)
    return jnp.where(inside & unhidden, facing * jnp.asarray(model.face_weight), 0)


def _light(color, normals, weight):
    """SH light (9,3) by robust ridge regression of the brightness of skin on the nine functions,
    mean shading 1.

    The prior is even light; second-order bands are held harder, since the albedo of brows, beard
    and cheeks would pass for them. Each channel may then differ a little from grey."""
    basis = sh_basis(normals)
    total = jnp.sum(weight) + 1e-3
    ridge = jnp.diag(jnp.asarray([1e-4] + [0.015] * 3 + [0.12] * 5, jnp.float32)) * total
    white = jnp.asarray(WHITE[:, 0])
    mean = jnp.sum(color * weight[:, None], axis=0) / total
    relative = color / jnp.maximum(mean, 0.02)[None]
    grey = jnp.sum(color, axis=-1) / jnp.maximum(jnp.sum(mean), 0.06)

    def solve(value, start, prior, hold):
        def step(_, light):
            error = jnp.abs(jnp.matmul(basis, light, precision=_HIGHEST) - value)
            robust = weight / jnp.maximum(1, error / 0.1) ** 2
            weighted = basis * robust[:, None]
            normal = jnp.matmul(weighted.T, basis, precision=_HIGHEST) + hold
            return jax.scipy.linalg.solve(
                normal,
                jnp.matmul(weighted.T, value, precision=_HIGHEST) + hold @ prior,
                assume_a="pos",
            )

        return jax.lax.fori_loop(0, 8, step, start)

    light = solve(grey, white, white, ridge)
    light = jax.vmap(lambda value: solve(value, light, light, 10 * ridge), in_axes=1, out_axes=1)(
        relative
    )
    level = jnp.sum(shading(normals, light) * weight[:, None], axis=0) / total
    light = light / jnp.maximum(level, 0.1)[None]
    return jnp.where(jnp.sum(weight) > 50, light, jnp.asarray(WHITE))


def _fill(model, albedo, seen, skin):
    """Albedo (V,3) with unseen vertices filled in: from the other side, from around, by default."""
    mirror, parts, neighbors = (
        jnp.asarray(model.mirror),
        jnp.asarray(model.parts),
        jnp.asarray(model.neighbors),
    )
    typical = _weighted_median(albedo, skin)
    brightness = jnp.max(typical)
    default = jnp.broadcast_to(typical, albedo.shape)
    for part, color in _DEFAULTS.items():
        default = jnp.where(
            (parts == part)[:, None],
            jnp.clip(jnp.asarray(color, jnp.float32) * brightness, 0, 0.95),
            default,
        )
    believable = (
        (parts == topology.SKIN) | (parts == topology.LEFT_EYE) | (parts == topology.RIGHT_EYE)
    )
    own = jnp.where(believable, seen, 0)[:, None]
    other = own[mirror] * (1 - own)
    weight = own + other
    color = (own * albedo + other * albedo[mirror]) / jnp.maximum(weight, 1e-6)

    # Normalized convolution: colors spread along the mesh, fading to the default far from anything
    # seen.
    def spread(_, state):
        sums, weights = state
        return (
            (sums + jnp.mean(sums[neighbors], axis=1)) / 2,
            (weights + jnp.mean(weights[neighbors], axis=1)) / 2,
        )

    sums, weights = jax.lax.fori_loop(0, 40, spread, (color * weight, weight))
    floor = 0.02
    around = (sums + floor * default) / (weights + floor)
    around = jnp.where(believable[:, None], around, default)
    return jnp.clip(weight * color + (1 - weight) * around, 0, 1)


def _weighted_median(values, weight):
    """Median (C,) of values (N,C) with weights (N,); 0.5 where nothing has weight."""

    def one(column):
        order = jnp.argsort(column)
        total = jnp.cumsum(weight[order])
        return jnp.where(total[-1] > 0, column[order][jnp.argmax(total >= total[-1] / 2)], 0.5)

    return jax.vmap(one, in_axes=1)(values)
