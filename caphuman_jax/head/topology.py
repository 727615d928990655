"""Meshes of heads: part labels, and which vertices, triangles and sides belong together."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from caphuman_jax.nn.typing import Array

# Labels in `HeadModel.parts`; left and right are the person's own.
SKIN, TONGUE, LEFT_EYE, RIGHT_EYE, LOWER_TEETH, UPPER_TEETH, MOUTH_INSIDE = range(7)


def vertex_normals(
    points: Float[Array, "v 3"], triangles: Int[Array, "t 3"], vertex_triangles: Int[Array, "v d"]
) -> Float[Array, "v 3"]:
    """Unit normals (V,3) of vertices (V,3): the normalized sum of the area-weighted normals of the
    triangles round each.
    """
    corner = jnp.asarray(points)[jnp.asarray(triangles)]
    face = jnp.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    face = jnp.concatenate([face, jnp.zeros_like(face[:1])])
    total = jnp.sum(face[jnp.asarray(vertex_triangles)], axis=1)
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


def mirror_map(points: Float[np.ndarray, "v 3"]) -> Int[np.ndarray, " v"]:
    """For each vertex of (V,3) the index (V,) int32 of the vertex nearest to its left-right mirror
    image.
    """
    from scipy.spatial import KDTree

    return KDTree(points).query(points * [-1, 1, 1])[1].astype(np.int32)


def incident_triangles(
    triangles: Int[np.ndarray, "t 3"], count: int
) -> Int[np.ndarray, "{count} d"]:
    """Triangles (V,D) int32 round each of `count` vertices, padded with T (one past the last)."""
    return _ragged(
        triangles.reshape(-1),
        np.repeat(np.arange(len(triangles)), 3),
        np.full(count, len(triangles)),
    )


def neighbors(triangles: Int[np.ndarray, "t 3"], count: int) -> Int[np.ndarray, "{count} n"]:
    """Vertices (V,N) int32 that share an edge with each of `count` vertices, padded with itself."""
    edges = np.unique(
        np.concatenate(
            [triangles[:, [a, b]] for a, b in ((0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0))]
        ),
        axis=0,
    )
    return _ragged(edges[:, 0], edges[:, 1], np.arange(count))


def _ragged(owner: np.ndarray, value: np.ndarray, padding: np.ndarray) -> np.ndarray:
    order = np.argsort(owner, kind="stable")
    owner, value = owner[order], value[order]
    sizes = np.bincount(owner, minlength=len(padding))
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.repeat(padding[:, None], sizes.max(), axis=1)
    table[owner, slot] = value
    return table.astype(np.int32)


def nearest_on_mesh(
    points: Float[np.ndarray, "n 3"],
    mesh: Float[np.ndarray, "v 3"],
    triangles: Int[np.ndarray, "t 3"],
    candidates: int = 12,
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """For points (N,3) the triangle's corners (N,3) and barycentric weights (N,3) of the nearest
    place on the mesh, among the triangles whose centers are nearest.
    """
    from scipy.spatial import KDTree

    corner = mesh[triangles].astype(np.float64)
    chosen = (
        KDTree(corner.mean(axis=1))
        .query(points, min(candidates, len(triangles)))[1]
        .reshape(len(points), -1)
    )
    a, b, c = (corner[chosen, i] for i in range(3))
    edges = np.stack([b - a, c - a], axis=-1)
    gram = np.einsum("nkxi,nkxj->nkij", edges, edges) + 1e-12 * np.eye(2)
    second = np.linalg.solve(
        gram, np.einsum("nkxi,nkx->nki", edges, points[:, None] - a)[..., None]
    )[..., 0]
    weights = np.concatenate([1 - second.sum(axis=-1, keepdims=True), second], axis=-1)
    weights = np.maximum(
        weights, 0
    )  # Beyond an edge: near enough to the nearest place for what this is used for.
    weights /= weights.sum(axis=-1, keepdims=True)
    place = np.einsum("nki,nkix->nkx", weights, corner[chosen])
    best = np.linalg.norm(place - points[:, None], axis=-1).argmin(axis=1)
    rows = np.arange(len(points))
    return triangles[chosen[rows, best]], weights[rows, best].astype(np.float32)


def face_weight(
    points: Float[np.ndarray, "v 3"],
    landmark_vertices: np.ndarray,
    parts: Int[np.ndarray, " v"],
) -> Float[np.ndarray, " v"]:
    """Weight (V,) of belonging to the visible face: near a landmark of the mean head, and skin or
    eye.
    """
    from scipy.spatial import KDTree

    distance = KDTree(points[np.unique(landmark_vertices)]).query(points)[0]
    weight = np.clip((0.12 - distance) / 0.08, 0, 1)
    return np.where((parts == SKIN) | (parts == LEFT_EYE) | (parts == RIGHT_EYE), weight, 0.0)
