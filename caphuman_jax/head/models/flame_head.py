"""FLAME as a head model like the shipped one: see the docstring of `flame` for how its numbers
become those of a `Head`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from caphuman_jax.errors import HeadError
from caphuman_jax.face import landmark_indices
from caphuman_jax.face.landmark_indices import IBUG_68, OUTER_EYE_CORNERS
from caphuman_jax.head import texture, topology
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.models import anny, flame, flame_files
from caphuman_jax.head.models.flame import Flame
from caphuman_jax.head.rasterizer import interpolate
from caphuman_jax.head.topology import LEFT_EYE, RIGHT_EYE, SKIN
from caphuman_jax.nn.typing import Array

UNITS = 10.0  # of the shipped head, 0.1 m, in a meter
JOINT_NAMES = tuple(f"{joint}_{axis}" for joint in flame.JOINTS[1:] for axis in "xyz")
MEDIAPIPE = "mediapipe_landmark_embedding.npz"
# In a fit to landmarks: deviation, least and largest of an expression coefficient, and of each turn
# in radians. Neck and eyes are held: the camera turns the whole head, and no landmark says where an
# eye looks.
_EXPRESSION_FIT = (0.7, -3.0, 3.0)
_JAW_FIT = ((0.2, -0.05, 0.7), (0.02, -0.15, 0.15), (0.02, -0.1, 0.1))
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
            [_EXPRESSION_FIT] * (len(self.expression_names) - len(JOINT_NAMES))
            + [held] * 3
            + list(_JAW_FIT)
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


def load_flame_head(path: str | Path, **options) -> FlameHead:
    """`flame_files.load_flame` as a head model; `options` are its. The landmark embedding must be
    given or lie next to the model.

    Where FLAME's own mediapipe_landmark_embedding.npz lies next to it, its 105 landmarks are used
    together with the outline. Raises HeadError."""
    path = Path(path).expanduser()
    table = (path if path.is_dir() else path.parent) / MEDIAPIPE
    return as_head(
        flame_files.load_flame(path, **options),
        flame_files.read_mediapipe(table) if table.is_file() else None,
    )


def as_head(
    model: Flame, mediapipe: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
) -> FlameHead:
    """FLAME as a head model. mediapipe: numbers (N,) of landmarks, their triangles (N,) and
    barycentric weights (N,3).

    Raises HeadError where the model has no landmarks.
    """
    if model.static is None:
        raise HeadError(
            f"the FLAME model {model.name} has no landmarks; put {flame_files.EMBEDDING} next to it"
        )
    origin = model.joints_mean[flame.JOINTS.index("jaw")] * np.asarray(
        [0, 1, 1], np.float32
    )  # Its hinge lies between the ears.
    mean = np.asarray((model.mean - origin) * np.float32(UNITS))
    triangles = np.asarray(model.triangles)
    corners, weights, fitted = _landmarks(model, mean, mediapipe)
    parts = _parts(mean, triangles)
    turns = _turn_derivatives(model) * np.float32(UNITS)
    valid = np.zeros(landmark_indices.COUNT, bool)
    valid[fitted] = True
    expressions = len(model.expression_basis)
    basis = np.concatenate([model.expression_basis * np.float32(UNITS), turns])
    shipped = anny.load()
    return FlameHead(
        mean=mean,
        identity_basis=model.shape_basis * np.float32(UNITS),
        identity_bound=np.full(len(model.shape_basis), 3, np.float32),
        expression_basis=basis,
        triangles=triangles,
        landmark_vertices=corners,
        landmark_weights=weights,
        landmark_valid=valid,
        mirror=topology.mirror_map(mean),
        parts=parts,
        vertex_triangles=model.vertex_triangles,
        neighbors=topology.neighbors(triangles, len(mean)),
        face_weight=topology.face_weight(mean, corners, parts).astype(np.float32),
        name="flame",
        expression_names=tuple(f"expression_{i}" for i in range(expressions)) + JOINT_NAMES,
        flame=model,
        origin=origin,
        landmarks_fitted=fitted,
        arkit=_arkit(shipped, basis, corners, weights, fitted),
        arkit_names=shipped.expression_names,
    )


def _turn_derivatives(model: Flame) -> np.ndarray:
    """How vertices move (12,V,3) as neck, jaw and eyes begin to turn, from the mean head: the
    skin's turn and the correctives'.
    """
    moves = []
    for joint in range(1, len(flame.JOINTS)):
        carried = [j for j in range(len(flame.JOINTS)) if j == joint or flame.PARENTS[j] == joint]
        share = model.weights[:, carried].sum(axis=1, keepdims=True)
        for axis in np.eye(3, dtype=np.float32):
            skew = np.cross(np.eye(3, dtype=np.float32), axis)
            corrective = np.tensordot(
                skew.reshape(-1), model.pose_basis[9 * joint - 9 : 9 * joint], axes=1
            )
            moves.append(share * np.cross(axis, model.mean - model.joints_mean[joint]) + corrective)
    return np.stack(moves).astype(np.float32)


def _arkit(
    shipped: HeadModel,
    basis: np.ndarray,
    corners: np.ndarray,
    weights: np.ndarray,
    fitted: np.ndarray,
) -> np.ndarray:
    """Expressions (N,E+12) nearest to the shipped head's N, by how the given landmarks move: least
    squares with the fit's priors.
    """
    numbers = fitted[shipped.landmark_valid[fitted]]
    wanted = (
        shipped.expression_basis[:, shipped.landmark_vertices[numbers]]
        * shipped.landmark_weights[numbers][..., None]
    ).sum(axis=2)
    moves = (basis[:, corners[numbers]] * weights[numbers][..., None]).sum(axis=2)
    turns = [0.0] * 3 + [deviation for deviation, _, _ in _JAW_FIT] + [0.0] * 6
    deviations = np.asarray([_EXPRESSION_FIT[0]] * (len(basis) - len(turns)) + turns, np.float64)
    eyes = shipped.landmark_vertices[list(OUTER_EYE_CORNERS)]
    noise = 0.01 * np.ptp(shipped.mean[eyes, 0].mean(axis=1))
    scaled = moves.reshape(len(moves), -1) * deviations[:, None] / noise
    solution = np.linalg.solve(
        scaled @ scaled.T + np.eye(len(scaled)), scaled @ wanted.reshape(len(wanted), -1).T / noise
    )
    return (solution * deviations[:, None]).T.astype(np.float32)


def _landmarks(
    model: Flame, mean: np.ndarray, mediapipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners (478,3) int32 and weights (478,3) float32 of the landmarks on the mesh, and the
    numbers of those that are given.

    Given are the 68 of FLAME's tables, or the outline of those and the 105 of `mediapipe`. The
    others: the shipped head's mean landmarks, warped so that the given ones meet (thin-plate
    spline), then the nearest place on the mesh."""
    from scipy.interpolate import RBFInterpolator

    assert model.static is not None and model.contour is not None, "as_head asks first"
    contour = (
        tuple(part[0] for part in model.contour)
        if model.full is None
        else tuple(part[:17] for part in model.full)
    )
    numbers = np.asarray(IBUG_68)
    corners, weights = (
        np.concatenate([outline, inner]) for outline, inner in zip(contour, model.static)
    )
    if mediapipe is not None:
        extra, faces, barycentric = mediapipe
        if faces.max() >= len(model.triangles):
            raise HeadError(
                f"{MEDIAPIPE} does not belong to this FLAME model: it names a triangle that there "
                f"is not"
            )
        keep = np.flatnonzero(~np.isin(numbers[:17], extra))
        numbers, corners, weights = (
            np.concatenate([ours[keep], theirs])
            for ours, theirs in (
                (numbers, extra),
                (corners, model.triangles[faces]),
                (weights, barycentric),
            )
        )
    shipped = anny.load()
    source = np.asarray(
        (shipped.mean[shipped.landmark_vertices] * shipped.landmark_weights[..., None]).sum(axis=1),
        np.float64,
    )
    target = (mean[corners] * weights[..., None]).sum(axis=1)
    known = shipped.landmark_valid[numbers]
    # A little slack: neighbors that two tables put at slightly different places must not fold the
    # face.
    warp = RBFInterpolator(
        source[numbers[known]], target[known], kernel="thin_plate_spline", smoothing=1e-3
    )
    carried = np.flatnonzero(
        shipped.landmark_valid & ~np.isin(np.arange(landmark_indices.COUNT), numbers)
    )
    all_corners, all_weights = (
        np.zeros((landmark_indices.COUNT, 3), np.int32),
        np.full((landmark_indices.COUNT, 3), 1 / 3, np.float32),
    )
    all_corners[carried], all_weights[carried] = topology.nearest_on_mesh(
        warp(source[carried]), mean, np.asarray(model.triangles)
    )
    all_corners[numbers], all_weights[numbers] = corners, weights
    return all_corners, all_weights, np.sort(numbers).astype(np.int32)


def _parts(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Part label (V,) int32: the largest connected part is the skin; of the others those at +x are
    the person's left eye.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([triangles[:, :2], triangles[:, 1:]])
    labels = connected_components(
        coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2), directed=False
    )[1]
    parts = np.full(len(points), SKIN, np.int32)
    for label in set(labels) - {np.bincount(labels).argmax()}:
        part = labels == label
        parts[part] = LEFT_EYE if points[part, 0].mean() > 0 else RIGHT_EYE
    return parts
