"""Heads for a viewer in a browser: the model's triangles and expressions once, then a shape and
colors for each person.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from caphuman_jax.face.face import Face
from caphuman_jax.head import editing, head_json
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.mesh_export import vertex_colors
from caphuman_jax.person.person import Person

_LEVELS = 32767


def model_view(model: HeadModel) -> dict[str, Any]:
    """What viewers need to know of a head model, as JSON types.

    Returns:
        "triangles": T × 3 uint16 in base64, neighbors one after another; "expressions": names;
        "offsets": for each name V × 3 int16 in base64, to be multiplied by "steps" and added to a
        person's shape; "face_height" in the model's unit; "presets" {name: {expression: weight}};
        "lights" {name: 9 × 3}; "limits" in degrees.
    """
    names, basis = model.arkit_basis()
    nobody = np.zeros(len(model.identity_basis), np.float32)
    still = np.zeros(len(model.expression_names), np.float32)
    rest = np.asarray(model.vertices(nobody, still))
    offsets, steps = [], []
    for row in basis:
        moved = np.asarray(model.vertices(nobody, row.astype(np.float32))) - rest
        step = max(float(np.abs(moved).max()), 1e-9) / _LEVELS
        offsets.append(_coded(np.rint(moved / step).astype("<i2")))
        steps.append(step)
    kind = "<u2" if len(rest) < 2**16 else "<u4"
    return {
        "model": model.name,
        "vertices": len(rest),
        "triangles": _coded(_nearby(np.asarray(model.triangles), len(rest)).astype(kind)),
        "expressions": list(names),
        "offsets": offsets,
        "steps": steps,
        "face_height": editing.face_height(model),
        "presets": editing.PRESETS,
        "lights": {name: editing.parse_light(name).tolist() for name in editing.LIGHTS},
        "limits": editing.LIMITS,
    }


def person_view(model: HeadModel, person: Person) -> dict[str, Any]:
    """A person's head: the entries of head.json, and its shape and colors, as JSON types.

    Returns:
        "head": see `head_json.of`; "shape": V × 3 float32 in base64, without the expression;
        "colors": V × 3 uint8 in base64; "weights": {expression: weight} of the names of
        `model_view`.
    """
    head = person.head
    still = np.zeros(len(model.expression_names), np.float32)
    shape = np.asarray(model.vertices(np.asarray(head.identity), still))
    colors = np.rint(255 * vertex_colors(model, head)).astype(np.uint8)
    names, _ = model.arkit_basis()
    weights = model.arkit_weights(tuple(names), np.asarray(head.expression))
    return {
        "head": head_json.of(model, head, fit=round(person.confidence, 4)),
        "shape": _coded(shape.astype("<f4")),
        "colors": _coded(colors),
        "weights": {
            name: round(float(weight), 4)
            for name, weight in zip(names, np.clip(weights, 0, 1))
            if weight > 0.005
        },
    }


def face_view(face: Face, shape: tuple[int, ...]) -> dict[str, Any]:
    """A face's box as parts of the photo's width and height: left, top, right, bottom."""
    height, width = shape[:2]
    box = np.asarray(face.box, np.float64) / [width, height, width, height]
    return {
        "box": [round(float(side), 4) for side in np.clip(box, 0, 1)],
        "score": round(float(face.score), 4),
    }


def _nearby(triangles: np.ndarray, count: int) -> np.ndarray:
    """Triangles in an order in which renderers compute fewer points more than once."""
    edges = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).T
    graph = coo_array((np.ones(edges.shape[1]), edges), (count, count)).tocsr()
    rank = np.empty(count, np.int64)
    rank[reverse_cuthill_mckee(graph)] = np.arange(count)
    return triangles[np.argsort(rank[triangles].min(axis=1), kind="stable")]


def _coded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
