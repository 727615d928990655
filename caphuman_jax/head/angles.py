"""Angles of a rotation, on the host or on a device. Imports neither."""

from __future__ import annotations

from typing import Any


def angles_of(rotation: Any, xp: Any) -> Any:
    """Yaw, pitch and roll (…, 3) in degrees of rotations (…, 3, 3), see `pose.rotation_matrix`.

    Args:
        rotation: arrays of `xp`.
        xp: numpy or jax.numpy.
    """
    yaw = xp.arcsin(xp.clip(-rotation[..., 2, 0], -1, 1))
    pitch = xp.arctan2(-rotation[..., 2, 1], rotation[..., 2, 2])
    roll = xp.arctan2(-rotation[..., 1, 0], rotation[..., 0, 0])
    return xp.rad2deg(xp.stack([yaw, pitch, roll], axis=-1))
