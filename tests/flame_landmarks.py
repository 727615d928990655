"""FLAME's 68 landmarks of a posed head, as DECA places them: they show that the tables of landmarks
are read as DECA reads them.
"""

import jax.numpy as jnp

from caphuman_jax.head import pose as rotations

LARGEST_YAW = 39  # degrees, to which the table of the outline goes


def landmarks(flame, points, pose):
    """The 68 landmarks (68, 3) of vertices (V, 3), in iBUG's order. The outline is that seen at
    this pose (15,): it moves with the yaw, in whole degrees.
    """
    root, neck = (rotations.from_vector(pose[3 * joint : 3 * joint + 3]) for joint in (0, 1))
    matrix = jnp.matmul(root, neck, precision="highest")
    yaw = jnp.rad2deg(jnp.arctan2(-matrix[2, 0], jnp.hypot(matrix[0, 0], matrix[1, 0])))
    yaw = jnp.clip(jnp.round(yaw), -LARGEST_YAW, LARGEST_YAW).astype(jnp.int32)
    row = jnp.where(yaw < 0, LARGEST_YAW - yaw, yaw)
    corners, weights = (jnp.asarray(part)[row] for part in flame.contour)
    return jnp.concatenate([_embedded((corners, weights), points), _embedded(flame.static, points)])


def fixed_landmarks(flame, points):
    """The 68 landmarks (68, 3) in iBUG's order, each always at the same place of the head."""
    return _embedded(flame.full, points)


def _embedded(embedding, points):
    corners, weights = (jnp.asarray(part) for part in embedding)
    return jnp.sum(points[corners] * weights[..., None], axis=-2)
