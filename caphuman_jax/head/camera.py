"""Scaled-orthographic camera in picture pixels, and what happens to it when the picture is cropped,
resized, turned or mirrored.

x_px = scale · X + tx,  y_px = -scale · Y + ty,  z_px = -scale · Z (smaller is nearer), with
(X, Y, Z) the posed head (R @ vertex).
Pixel coordinates are continuous: the picture spans [0, width] × [0, height], the center of pixel
(r, c) is (c + 0.5, r + 0.5).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from caphuman_jax.head.spherical_harmonics import turn_light
from caphuman_jax.nn.typing import Array, Scalar

# Accelerators' short products would move a head by half a pixel.
_HIGHEST = jax.lax.Precision.HIGHEST


def project(
    points: Float[Array, "n 3"],
    rotation: Float[Array, "3 3"],
    scale: Scalar,
    translation: Float[Array, "2"],
) -> Float[Array, "n 3"]:
    """Points (N,3) of a head → (N,3) in pixels, y down, for rotation (3,3), scale () in pixels per
    model unit, translation (2,).
    """
    posed = jnp.matmul(jnp.asarray(points), rotation.T, precision=_HIGHEST)
    return jnp.stack(
        [
            scale * posed[:, 0] + translation[0],
            -scale * posed[:, 1] + translation[1],
            -scale * posed[:, 2],
        ],
        axis=-1,
    )


def transform_points(
    matrix: Float[Array, "2 3"], points: Float[Array, "*n 2"]
) -> Float[Array, "*n 2"]:
    """Pixel positions (…,2) under a change of picture (2,3)."""
    turned = jnp.matmul(points, matrix[:, :2].T, precision=_HIGHEST)
    return turned + jax.lax.broadcast_to_rank(matrix[:, 2], turned.ndim)


@jax.jit
def transform_head(head, model, matrix: Float[Array, "2 3"], height: float, width: float):
    """The `Head` as it stands in the changed picture of height × width pixels; `matrix` (2,3) is a
    similarity, mirrored or not.

    A mirrored head has the mirrored pose, light, expression, albedo; its identity is the
    least-squares mirrored identity (directions of a symmetric model mirror into one another
    exactly)."""
    matrix = jnp.asarray(matrix, jnp.float32)
    linear = matrix[:, :2]
    determinant = jnp.linalg.det(linear)
    head = jax.tree.map(lambda a, b: jnp.where(determinant < 0, a, b), mirrored(head, model), head)
    factor = jnp.sqrt(jnp.abs(determinant))
    flip = jnp.where(determinant < 0, -1.0, 1.0)
    # What is left after the mirroring (about the axis x = 0) is a turn; y is down in pixels, up in
    # the head's frame.
    turn = linear * jnp.stack([flip, jnp.ones_like(flip)])[None] / factor
    # The head was turned into the mirrored picture of its own width: undo that width in the
    # position.
    position = transform_points(
        matrix,
        jnp.stack(
            [
                jnp.where(flip < 0, head.size[1] - head.translation[0], head.translation[0]),
                head.translation[1],
            ]
        ),
    )
    in_plane = (
        jnp.eye(3, dtype=jnp.float32)
        .at[:2, :2]
        .set(turn * jnp.asarray([[1.0, -1.0], [-1.0, 1.0]], jnp.float32))
    )
    return dataclasses.replace(
        head,
        rotation=jnp.matmul(in_plane, head.rotation, precision=_HIGHEST),
        scale=head.scale * factor,
        translation=position,
        light=turn_light(head.light, in_plane),
        size=jnp.stack([jnp.asarray(height, jnp.float32), jnp.asarray(width, jnp.float32)]),
    )


@jax.jit
def mirrored(head, model):
    """The `Head` of the left-right mirrored photo of the same size."""
    flip = jnp.asarray([-1.0, 1.0, 1.0], jnp.float32)
    basis = jnp.asarray(model.identity_basis)
    flat = basis.reshape(basis.shape[0], -1)
    shape = (
        jnp.tensordot(head.identity, basis, axes=1, precision=_HIGHEST)[jnp.asarray(model.mirror)]
        * flip[None]
    )
    product = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)
    identity = jnp.linalg.solve(
        product(flat, flat.T) + 1e-6 * jnp.eye(flat.shape[0], dtype=jnp.float32),
        product(flat, shape.reshape(-1)),
    )
    # SH bands of DECA's order: 1, x, y, z, xy, xz, yz, x²-y², 3z²-1.
    signs = jnp.asarray([1, -1, 1, 1, -1, -1, 1, 1, 1], jnp.float32)[:, None]
    return dataclasses.replace(
        head,
        identity=identity,
        expression=model.mirrored_expression(head.expression),
        rotation=head.rotation * flip[:, None] * flip[None],
        translation=jnp.stack([head.size[1] - head.translation[0], head.translation[1]]),
        light=head.light * signs,
        albedo=model.mirrored_albedo(head.albedo),
    )
