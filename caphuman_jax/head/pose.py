"""Rotations of a head as yaw, pitch and roll in degrees, and as 3×3 matrices.

Signs, as the viewer of the picture sees them (model frame: x right in the picture, y up, z towards
  the viewer): positive yaw    the face turns towards the right side of the picture (the nose moves
  right); positive pitch  the face looks up (the nose moves up); positive roll   the head tilts
  clockwise.
The matrix is R = Rz(-roll) · Ry(yaw) · Rx(-pitch): pitch first, in the head's own frame, then yaw,
then roll in the picture plane; a point X of the head goes to R @ X."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from caphuman_jax.head.angles import angles_of
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import kept_programs


def rotation_matrix(yaw, pitch, roll) -> Float[Array, "*b 3 3"]:
    """Rotation (…,3,3) from yaw, pitch, roll in degrees (scalars or arrays of one shape)."""
    yaw, pitch, roll = (
        jnp.deg2rad(jnp.asarray(angle, jnp.float32)) for angle in (yaw, pitch, roll)
    )
    cosines = jnp.cos(yaw), jnp.cos(pitch), jnp.cos(roll)
    rows = _rows(cosines, (jnp.sin(yaw), jnp.sin(pitch), jnp.sin(roll)))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_of_numbers(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """`rotation_matrix` of three numbers, to the bit, with one program instead of eight."""
    radians = np.asarray([yaw, pitch, roll], np.float32) * np.float32(np.pi / 180)
    cosines, sines = map(np.asarray, _cosines_and_sines(radians))
    return np.asarray(_rows(cosines, sines), np.float32)


@kept_programs.jit
def _cosines_and_sines(
    radians: Float[Array, "3"],
) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    return jnp.cos(radians), jnp.sin(radians)


def _rows(cosines, sines):
    """Entries of a rotation by yaw, pitch and roll."""
    (cy, cp, cr), (sy, sp, sr) = cosines, sines
    return [
        [cr * cy, sr * cp - cr * sy * sp, cr * sy * cp + sr * sp],
        [-sr * cy, cr * cp + sr * sy * sp, cr * sp - sr * sy * cp],
        [-sy, -cy * sp, cy * cp],
    ]


def angles(rotation: Float[Array, "*b 3 3"]) -> Float[Array, "*b 3"]:
    """Yaw, pitch, roll (…,3) in degrees of rotations (…,3,3): the inverse of `rotation_matrix` for
    |yaw| < 90.
    """
    return angles_of(rotation, jnp)


def from_vector(vector: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotation (3,3) by the axis-angle vector (3,) in radians (Rodrigues' formula)."""
    squared = jnp.sum(vector * vector)
    angle = jnp.sqrt(jnp.maximum(squared, 1e-16))
    x, y, z = vector
    zero = jnp.zeros_like(x)
    cross = jnp.stack(
        [jnp.stack([zero, -z, y]), jnp.stack([z, zero, -x]), jnp.stack([-y, x, zero])]
    )
    return (
        jnp.eye(3, dtype=vector.dtype)
        + jnp.sin(angle) / angle * cross
        + (1 - jnp.cos(angle)) / angle**2 * (cross @ cross)
    )


def orthonormal(matrix: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """The rotation (3,3) nearest to a matrix (3,3)."""
    u, _, vt = jnp.linalg.svd(matrix)
    sign = jnp.sign(jnp.linalg.det(u @ vt))
    return u @ (jnp.stack([jnp.ones_like(sign), jnp.ones_like(sign), sign])[:, None] * vt)
