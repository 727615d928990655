"""FLAME (Li et al. 2017, "Learning a model of facial shape and expression from 4D scans"): a
skinned head with five joints.

Everything here is in FLAME's own frame and unit: meters, x to the person's left, y up, z out of the
face; and, as in FLAME, the global turn is one about the root joint, which depends on the shape.
`flame_files` reads the model, `deca` renders it as DECA does.

`flame_head.FlameHead` makes a `HeadModel` of it. There, identity is FLAME's; expression is FLAME's
followed by the rotations of neck, jaw and eyes; global rotation, scale and shift are the camera's;
units are the shipped head's (0.1 m) and the origin lies between the ears; landmarks are those of
the 478 that FLAME's 68 correspond to; and the albedo is colors at vertices, or a texture (S,S,3)
that is looked up at every pixel as in DECA."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from caphuman_jax.errors import HeadError
from caphuman_jax.head import pose as rotations
from caphuman_jax.head import texture
from caphuman_jax.nn.typing import Array

VERTICES = 5023
JOINTS = ("root", "neck", "jaw", "left_eye", "right_eye")
PARENTS = (-1, 0, 1, 1, 1)
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "mean",
        "shape_basis",
        "expression_basis",
        "pose_basis",
        "joints_mean",
        "joints_shape",
        "joints_expression",
        "weights",
        "triangles",
        "vertex_triangles",
        "static",
        "contour",
        "full",
        "uv",
        "uv_triangles",
    ],
    meta_fields=["name"],
)
@dataclasses.dataclass(frozen=True)
class Flame:
    """FLAME's arrays; a pytree (V vertices, T triangles, K shape and E expression directions, 5
    joints).

    mean (V,3); shape_basis (K,V,3), expression_basis (E,V,3), pose_basis (36,V,3); joints_mean
    (5,3), joints_shape (K,5,3) and joints_expression (E,5,3): where the joints are, by shape;
    weights (V,5) of the skin; triangles (T,3) int32; vertex_triangles (V,D) int32, see
    `topology.incident_triangles`. Landmarks, each as corners (…,3) int32 and weights (…,3): static
    (51): brows, nose, eyes, mouth; contour (79,17): the outline as seen at yaw 0 … 39, -1 … -39
    degrees; full (68): all of them, fixed. None where the model came without an embedding. uv
    (U,2), with v up, and uv_triangles (T,3) int32: where a triangle's corners lie in the texture;
    None without a template."""

    mean: Array
    shape_basis: Array
    expression_basis: Array
    pose_basis: Array
    joints_mean: Array
    joints_shape: Array
    joints_expression: Array
    weights: Array
    triangles: Array
    vertex_triangles: Array
    static: tuple[Array, Array] | None
    contour: tuple[Array, Array] | None
    full: tuple[Array, Array] | None
    uv: Array | None
    uv_triangles: Array | None
    name: str


def full_pose(
    pose: Float[Array, "*b 6"],
    neck: Float[Array, "*b 3"] | None = None,
    eyes: Float[Array, "*b 6"] | None = None,
) -> Float[Array, "*b 15"]:
    """DECA's pose (…,6), global turn and jaw as axis-angle in radians → FLAME's (…,15) in the order
    of JOINTS.

    neck (…,3) and eyes (…,6), left then right, are 0 if not given.
    """
    zeros = lambda count: jnp.zeros((*pose.shape[:-1], count), pose.dtype)
    neck, eyes = zeros(3) if neck is None else neck, zeros(6) if eyes is None else eyes
    return jnp.concatenate([pose[..., :3], neck, pose[..., 3:], eyes], axis=-1)


def vertices(
    flame: Flame,
    shape: Float[Array, " k"],
    expression: Float[Array, " e"],
    pose: Float[Array, "15"],
) -> Float[Array, "v 3"]:
    """Vertices (V,3) for shape (K,), expression (E,) and pose (15,), axis-angle in radians in the
    order of JOINTS.

    Linear blend skinning with pose correctives (equations 2–5 of the paper).
    """
    rest = _combine(flame.mean, shape, flame.shape_basis, expression, flame.expression_basis)
    turns = _turns(pose)
    correction = (turns[1:] - jnp.eye(3, dtype=turns.dtype)[None]).reshape(-1)
    rest = rest + jnp.tensordot(
        correction, jnp.asarray(flame.pose_basis), axes=1, precision=_HIGHEST
    )
    rotation, shift = _skeleton(joints(flame, shape, expression), turns)
    weights = jnp.asarray(flame.weights)
    turned = jnp.einsum("vj,jab,vb->va", weights, rotation, rest, precision=_HIGHEST)
    return turned + jnp.matmul(weights, shift, precision=_HIGHEST)


def joints(
    flame: Flame, shape: Float[Array, " k"], expression: Float[Array, " e"]
) -> Float[Array, "5 3"]:
    """Where the joints (5,3) are before any turn."""
    return _combine(
        flame.joints_mean, shape, flame.joints_shape, expression, flame.joints_expression
    )


def texture_at(
    flame: Flame,
    image: Float[Array, "s s c"],
    ids: Int[Array, "h w"],
    weights: Float[Array, "h w 3"],
) -> Float[Array, "h w c"]:
    """`head.texture.texture_at` with this model's texture coordinates. Raises HeadError where it
    has none."""
    if flame.uv is None or flame.uv_triangles is None:
        raise HeadError(
            "this FLAME model has no texture coordinates; put head_template.obj next to it"
        )
    return texture.texture_at(image, flame.uv, flame.uv_triangles, ids, weights)


def _combine(mean, shape, shape_basis, expression, expression_basis):
    sum_of = lambda weights, basis: jnp.tensordot(
        weights, jnp.asarray(basis), axes=1, precision=_HIGHEST
    )
    return jnp.asarray(mean) + sum_of(shape, shape_basis) + sum_of(expression, expression_basis)


def _turns(pose):
    with jax.default_matmul_precision("highest"):
        return jax.vmap(rotations.from_vector)(pose.reshape(-1, 3))


def _skeleton(places, turns):
    """Of every joint the map x → rotation (5,3,3) @ x + shift (5,3) from rest to pose."""
    product = functools.partial(jnp.matmul, precision=_HIGHEST)
    rotation, position = [turns[0]], [places[0]]
    for joint, parent in list(enumerate(PARENTS))[1:]:
        position.append(
            position[parent] + product(rotation[parent], places[joint] - places[parent])
        )
        rotation.append(product(rotation[parent], turns[joint]))
    rotation = jnp.stack(rotation)
    return rotation, jnp.stack(position) - jnp.einsum(
        "jab,jb->ja", rotation, places, precision=_HIGHEST
    )
