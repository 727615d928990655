"""A head for other programs: an OBJ mesh with vertex colors, and turntable pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from caphuman_jax.head import editing, pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head, stack
from caphuman_jax.head.hints import render_hints_batch

_GREY = 0.38
_TOGETHER = 6  # heads rendered at a time


def to_obj(model: HeadModel, head: Head) -> str:
    """The head's mesh as an OBJ file: `v x y z r g b` (colors in [0,1], an extension that Blender,
    MeshLab and CloudCompare read) and `f a b c`. Identity and expression are in it, position and
    pose are not: it looks along +z, y is up, in the model's unit.
    """
    points, colors = (
        np.asarray(model.vertices(head.identity, head.expression)),
        vertex_colors(model, head),
    )
    lines = [
        f"# head model {model.name}: x to the right of the viewer, y up, z towards the viewer; "
        f"vertex colors are albedo"
    ]
    lines += [
        "v {:.6f} {:.6f} {:.6f} {:.4f} {:.4f} {:.4f}".format(*point, *color)
        for point, color in zip(points, colors)
    ]
    lines += ["f {} {} {}".format(*triangle) for triangle in np.asarray(model.triangles) + 1]
    return "\n".join(lines) + "\n"


def vertex_colors(model: HeadModel, head: Head) -> Float[np.ndarray, "v 3"]:
    """Albedo (V,3) in [0,1] at vertices; of a texture its colors there."""
    return np.clip(model.vertex_colors(np.asarray(head.albedo)), 0, 1)


def turntable(
    model: HeadModel, head: Head, side: int = 256, count: int = 36
) -> UInt8[np.ndarray, "{count} {side} {side} 3"]:
    """Pictures (count, side, side, 3) uint8 of the head turning once about itself to the right,
    level and in the middle, the light standing where it is; on grey. The back of a head is not in a
    photo: it has the colors of its surroundings.
    """
    middle = editing.from_numbers(
        model,
        dataclasses.replace(head, size=jnp.full(2, side, jnp.float32)),
        position=(0.5, 0.5, 0.55),
    )
    turned = [
        dataclasses.replace(middle, rotation=pose.rotation_matrix(360 * i / count, 0, 0))
        for i in range(count)
    ]
    return np.stack([picture for _, picture in rendered(model, turned, side, side)])


def rendered(
    model: HeadModel, heads: Sequence[Head], height: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each head its hints (H, W, 9) float32, see `hints`, and its render on grey (H, W, 3)
    uint8; a few at a time are made at once.
    """
    for start in range(0, len(heads), _TOGETHER):
        part = list(heads[start : start + _TOGETHER])
        full = part + part[-1:] * (
            _TOGETHER - len(part) if len(heads) > _TOGETHER else 0
        )  # one shape, compiled once
        hints, alpha = (
            np.asarray(array)
            for array in render_hints_batch(model, stack(full), height, width, True)
        )
        for one, where, _ in zip(hints, alpha, part):
            yield (
                one,
                np.rint(255 * (one[..., 6:].clip(0, 1) * where + _GREY * (1 - where))).astype(
                    np.uint8
                ),
            )
