"""FLAME as a head model like the shipped one: see the docstring of `flame` for how its numbers
become those of a `Head`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from caphuman_jax.face import landmark_indices
from caphuman_jax.head import texture
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.models import flame
from caphuman_jax.head.models.flame import Flame
from caphuman_jax.head.rasterizer import interpolate
from caphuman_jax.nn.typing import Array

UNITS = 10.0  # of the shipped head, 0.1 m, in a meter
JOINT_NAMES = tuple(f"{joint}_{axis}" for joint in flame.JOINTS[1:] for axis in "xyz")
# In a fit to landmarks: deviation, least and largest of an expression coefficient, and of each turn
# in radians. Neck and eyes are held: the camera turns the whole head, and no landmark says where an
# eye looks.
EXPRESSION_FIT = (0.7, -3.0, 3.0)
JAW_FIT = ((0.2, -0.05, 0.7), (0.02, -0.15, 0.15), (0.02, -0.1, 0.1))
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *(
            field.name
            for field in dataclasses.fields(HeadModel)
            if field.name not in ("name", "expression_names")
        ),
        "flame",
        "origin",
        "landmarks_fitted",
        "arkit",
    ],
    meta_fields=["name", "expression_names", "arkit_names"],
)
@dataclasses.dataclass(frozen=True)
class FlameHead(HeadModel):
    """FLAME behind the fields of a `HeadModel`; V, K and E + 12 as there.

    expression: FLAME's coefficients, then the turns of neck, jaw, left and right eye as axis-angle
    in radians (see JOINT_NAMES); its rows of expression_basis are the derivatives at rest.
    landmark_valid: the landmarks whose place FLAME's own tables give, also as numbers in
    landmarks_fitted; the others' places are carried over from the shipped head and good to a few
    millimeters.
    flame: the model itself; origin (3,): our origin in its frame, in meters. arkit (N,E+12): the
    expression that moves the landmarks nearest to how the shipped head's expression of that name in
    arkit_names does, at weight 1."""

    flame: Flame
    origin: Array
    landmarks_fitted: Array
    arkit: Array
    arkit_names: tuple[str, ...]

    # FLAME has no inside of the mouth: an open mouth shows the inside of the head, as in DECA.
    double_sided: ClassVar[bool] = True

    def vertices(
        self, identity: Float[Array, " k"], expression: Float[Array, " e"]
    ) -> Float[Array, "v 3"]:
        coefficients, pose = self.split_expression(expression)
        origin = jnp.asarray(self.origin)[None]
        return (flame.vertices(self.flame, identity, coefficients, pose) - origin) * UNITS

    def turned_origin(
        self,
        identity: Float[Array, " k"],
        expression: Float[Array, " e"],
        rotation: Float[Array, "3 3"],
    ) -> Float[Array, "3"]:
        """Where our origin (3,) comes to lie in FLAME's frame, in meters: FLAME turns about its
        root, which depends on the shape.
        """
        root = flame.joints(self.flame, identity, self.split_expression(expression)[0])[0]
        return jnp.matmul(rotation, jnp.asarray(self.origin) - root, precision=_HIGHEST) + root

    @jax.jit
    def camera_shift(self, head) -> Float[Array, "2"]:
        """Pixels (2,) from where the camera of a `Head` puts the origin of FLAME's frame to where
        it puts ours.
        """
        origin = self.turned_origin(head.identity, head.expression, head.rotation)
        return origin[:2] * jnp.asarray([1, -1], jnp.float32) * (UNITS * head.scale)

    def place_by_camera(self, head, camera):
        """As CapHuman mixes DECA's numbers: position is the camera's, and a pose turns about
        FLAME's root in front of it."""
        return dataclasses.replace(
            head,
            translation=camera.translation - self.camera_shift(camera) + self.camera_shift(head),
        )

    def split_expression(
        self, expression: Float[Array, "*b e"]
    ) -> tuple[Float[Array, "*b c"], Float[Array, "*b 15"]]:
        """expression (…,E+12) → FLAME's coefficients (…,E) and its pose (…,15) without a global
        turn.
        """
        count = expression.shape[-1] - len(JOINT_NAMES)
        turns = expression[..., count:]
        return expression[..., :count], jnp.concatenate(
            [jnp.zeros_like(turns[..., :3]), turns], axis=-1
        )

    def landmarks_of(
        self, identity: Float[Array, " k"], expression: Float[Array, " e"]
    ) -> Float[Array, "478 3"]:
        """Landmarks (478,3); 0 where they are not fitted. Cheap: only the vertices round them are
        bent.
        """
        fitted = jnp.asarray(self.landmarks_fitted)
        corners = jnp.asarray(self.landmark_vertices)[fitted]
        at = lambda basis: jnp.asarray(basis)[..., corners.reshape(-1), :]
        part = dataclasses.replace(
            self,
            flame=dataclasses.replace(
                self.flame,
                mean=at(self.flame.mean),
                shape_basis=at(self.flame.shape_basis),
                pose_basis=at(self.flame.pose_basis),
                expression_basis=at(self.flame.expression_basis),
                weights=jnp.asarray(self.flame.weights)[corners.reshape(-1)],
            ),
        )
        points = part.vertices(identity, expression).reshape(*corners.shape, 3)
        points = jnp.sum(points * jnp.asarray(self.landmark_weights)[fitted][..., None], axis=-2)
        return jnp.zeros((landmark_indices.COUNT, 3), points.dtype).at[fitted].set(points)

    def landmark_functions(
        self, origin: Float[Array, "3"]
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        count = len(self.identity_basis)
        place = lambda coefficients: (
            self.landmarks_of(coefficients[:count], coefficients[count:]) - origin[None]
        )
        return place, lambda coefficients: jnp.moveaxis(jax.jacfwd(place)(coefficients), 2, 0)

    def expression_limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        held = (1.0, 0.0, 0.0)
        rows = (
            [EXPRESSION_FIT] * (len(self.expression_names) - len(JOINT_NAMES))
            + [held] * 3
            + list(JAW_FIT)
            + [held] * 6
        )
        return tuple(np.asarray(rows, np.float32).T)

    def arkit_basis(self) -> tuple[tuple[str, ...], Float[np.ndarray, "n e"]]:
        return self.arkit_names, np.asarray(self.arkit)

    def mirrored_expression(self, expression: Float[Array, " e"]) -> Float[Array, " e"]:
        """The expression (E+12,) of the mirrored face: nearest coefficients, turns mirrored, eyes
        exchanged.
        """
        count = expression.shape[0] - len(JOINT_NAMES)
        flip = jnp.asarray([-1.0, 1.0, 1.0], jnp.float32)
        basis = jnp.asarray(self.expression_basis)[:count]
        offset = (
            jnp.tensordot(expression[:count], basis, axes=1, precision=_HIGHEST)[
                jnp.asarray(self.mirror)
            ]
            * flip[None]
        )
        flat = basis.reshape(count, -1)
        normal = jnp.matmul(flat, flat.T, precision=_HIGHEST)
        ridge = 1e-6 * jnp.trace(normal) / count * jnp.eye(count, dtype=jnp.float32)
        mirrored = jnp.linalg.solve(
            normal + ridge, jnp.matmul(flat, offset.reshape(-1), precision=_HIGHEST)
        )
        neck, jaw, left, right = expression[count:].reshape(4, 3) * -flip[None]
        return jnp.concatenate([mirrored, neck, jaw, right, left])

    # The albedo is colors at vertices, or a texture (S,S,3), which is rendered as DECA does it:
    # looked up at every pixel, and nothing is clipped.
    def mirrored_albedo(self, albedo: Array) -> Array:
        return albedo[:, ::-1] if _is_texture(albedo.shape) else super().mirrored_albedo(albedo)

    def accepts_albedo(self, shape: tuple[int, ...]) -> bool:
        return super().accepts_albedo(shape) or (_is_texture(shape) and self.flame.uv is not None)

    def clips_hints(self, albedo_shape: tuple[int, ...]) -> bool:
        return not _is_texture(albedo_shape)

    def surface(
        self,
        normals: Float[Array, "v 3"],
        albedo: Array,
        ids: Int[Array, "h w"],
        weights: Float[Array, "h w 3"],
    ) -> tuple[Float[Array, "h w 3"], Float[Array, "h w 3"]]:
        if not _is_texture(albedo.shape):
            return super().surface(normals, albedo, ids, weights)
        normal = interpolate(normals, self.triangles, ids, weights)
        return normal, flame.texture_at(self.flame, albedo, ids, weights)

    def vertex_colors(self, albedo: np.ndarray) -> Float[np.ndarray, "v 3"]:
        if not _is_texture(np.shape(albedo)):
            return super().vertex_colors(albedo)
        # A vertex on a seam has several places in the texture; any will do.
        place = np.zeros(len(self.mean), np.int32)
        corners = np.asarray(self.flame.uv_triangles).reshape(-1)
        place[np.asarray(self.triangles).reshape(-1)] = corners
        uv = jnp.asarray(np.asarray(self.flame.uv)[place])
        return np.asarray(texture.sample_texture(jnp.asarray(albedo), uv))


def _is_texture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3
