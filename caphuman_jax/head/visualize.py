"""Pictures of a head for the eye: the fitted head over the photo, and hints as colors."""

from __future__ import annotations

import dataclasses

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size, pack_hints, render_hints
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.topology import SKIN
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import kept_programs


def overlay(
    model: HeadModel,
    head: Head,
    photo: UInt8[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "n d"] | None = None,
    opacity: float = 0.5,
    wireframe: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """The head over its photo (H,W,3) uint8 RGB: its render blended in by `opacity`, its front mesh
    as lines, and landmarks (N,2 or more) in the photo's pixels as dots. The photo may have another
    size than `head.size`; landmarks are the photo's.
    """
    height, width = photo.shape[:2]
    hints, alpha = (
        np.asarray(a) for a in render_hints(model, head, height, width, with_alpha=True)
    )
    share = opacity * alpha
    picture = np.ascontiguousarray(
        np.rint(photo * (1 - share) + 255 * hints[..., 6:].clip(0, 1) * share).astype(np.uint8)
    )
    if wireframe:
        picture = _wires(model, head, picture)
    if landmarks is not None:
        points = np.asarray(landmarks)[:, :2]
        radius = int(np.ptp(points[:, 0]) / 200)
        for x, y in points:
            cv2.circle(picture, (int(x), int(y)), radius, (60, 230, 90), -1)
    return picture


def _wires(model: HeadModel, head: Head, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    points, normals = _mesh(model, fit_to_size(head, height, width))
    triangles = model.triangles[(np.asarray(model.parts)[model.triangles] == SKIN).all(axis=1)]
    triangles = triangles[(normals[triangles, 2] > 0.1).all(axis=1)]
    lines = picture.copy()
    outline = np.rint(points[triangles, :2] * 16).astype(np.int32)
    cv2.polylines(lines, list(outline), True, (235, 240, 255), 1, cv2.LINE_AA, 4)
    return cv2.addWeighted(lines, 0.25, picture, 0.75, 0)


def _mesh(model: HeadModel, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V,2) in pixels and normals (V,3) of a head."""
    turned, normals = map(np.asarray, _turned(model, head))
    # On the host: a program may round a product and a sum as one.
    return turned[:, :2] * np.asarray(head.scale) + np.asarray(head.translation), normals


@kept_programs.jit
def _turned(model: HeadModel, head: Head) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """`posed`, with vertices in the model's unit about its origin, y down."""
    place = {"scale": jnp.float32(1), "translation": jnp.zeros(2, jnp.float32)}
    return posed(model, dataclasses.replace(head, **place))


def hint_pictures(hints: Float[Array, "h w 9"]) -> list[np.ndarray]:
    """Hints (H,W,9) → three pictures (H,W,3) uint8: normals (x/2 + 1/2, mid-grey where there is no
    head), albedo, render.
    """
    return np.split(pack_hints(np.asarray(hints)), 3, axis=-1)


def hint_strip(hints: Float[Array, "h w 9"]) -> UInt8[np.ndarray, "h w3 3"]:
    """`hint_pictures` side by side, (H, 3 W, 3) uint8."""
    return np.concatenate(hint_pictures(hints), axis=1)
