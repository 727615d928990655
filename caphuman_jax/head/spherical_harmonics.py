"""Spherical-harmonics light: nine real functions of the normal, with the constants that DECA uses
(Ramamoorthi & Hanrahan 2001; the cosine lobe is folded into all but the first). Normals are in the
viewer's frame: x right, y up, z towards the viewer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from caphuman_jax.nn.typing import Array

_HIGHEST = jax.lax.Precision.HIGHEST
SH_CONSTANTS = np.asarray(
    [
        1 / np.sqrt(4 * np.pi),
        *[2 * np.pi / 3 * np.sqrt(3 / (4 * np.pi))] * 3,
        *[np.pi / 4 * 3 * np.sqrt(5 / (12 * np.pi))] * 3,
        np.pi / 4 * 1.5 * np.sqrt(5 / (12 * np.pi)),
        np.pi / 4 * 0.5 * np.sqrt(5 / (4 * np.pi)),
    ],
    np.float32,
)
# Even white light: shading 1 everywhere.
WHITE = np.zeros((9, 3), np.float32)
WHITE[0] = 1 / SH_CONSTANTS[0]


def sh_basis(normals: Float[Array, "*n 3"]) -> Float[Array, "*n 9"]:
    """The nine functions (…,9) at normals (…,3): 1, x, y, z, xy, xz, yz, x²-y², 3z²-1, each times
    its constant.
    """
    x, y, z = (normals[..., i] for i in range(3))
    one = jnp.ones_like(x)
    functions = jnp.stack(
        [one, x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - one], axis=-1
    )
    return functions * jax.lax.broadcast_to_rank(SH_CONSTANTS, functions.ndim)


def shading(normals: Float[Array, "*n 3"], light: Float[Array, "9 3"]) -> Float[Array, "*n 3"]:
    """Shading (…,3) of normals (…,3) under light (9,3); not clipped, so it may be negative in odd
    lights.
    """
    return jnp.einsum("...k,kc->...c", sh_basis(normals), light, precision=_HIGHEST)


def turn_light(light: Float[Array, "9 3"], rotation: Float[Array, "3 3"]) -> Float[Array, "9 3"]:
    """Light (9,3) turned by a rotation (3,3): solved from its values in directions spread over the
    sphere.
    """
    k = np.arange(64) + 0.5
    polar, around = np.arccos(1 - 2 * k / 64), np.pi * (1 + 5**0.5) * k
    points = jnp.asarray(
        np.stack(
            [np.cos(around) * np.sin(polar), np.sin(around) * np.sin(polar), np.cos(polar)], -1
        ),
        jnp.float32,
    )
    back = jnp.matmul(points, rotation, precision=_HIGHEST)
    return jnp.matmul(
        jnp.linalg.pinv(sh_basis(points)),
        jnp.matmul(sh_basis(back), light, precision=_HIGHEST),
        precision=_HIGHEST,
    )
