"""FLAME's files → a `FlameHead`: where its landmarks lie, which vertices are skin and eyes, and
what the shipped head's expressions are in its numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caphuman_jax.errors import HeadError
from caphuman_jax.face import landmark_indices
from caphuman_jax.face.landmark_indices import IBUG_68, OUTER_EYE_CORNERS
from caphuman_jax.head import topology
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.models import anny, flame, flame_files
from caphuman_jax.head.models.flame import Flame
from caphuman_jax.head.models.flame_head import (
    EXPRESSION_FIT,
    JAW_FIT,
    JOINT_NAMES,
    UNITS,
    FlameHead,
)
from caphuman_jax.head.topology import LEFT_EYE, RIGHT_EYE, SKIN

MEDIAPIPE = "mediapipe_landmark_embedding.npz"


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
    turns = [0.0] * 3 + [deviation for deviation, _, _ in JAW_FIT] + [0.0] * 6
    deviations = np.asarray([EXPRESSION_FIT[0]] * (len(basis) - len(turns)) + turns, np.float64)
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
