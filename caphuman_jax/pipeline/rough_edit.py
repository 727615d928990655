"""The photo with its head moved and lit roughly as asked for: what sampling an edit begins with.

Every pixel follows the mesh from its old place to its new one, and hair and background around the
head follow with less and less of that motion. So nothing is uncovered, and no outline of the old
head is left. Where the old view did not show a part, its mirror image is taken: faces are nearly
symmetric. Light is the ratio of both heads' shading. The rest is what sampling is for.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.face import align
from caphuman_jax.face.segmentation import person_mask
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.rasterizer import interpolate, rasterize
from caphuman_jax.head.spherical_harmonics import shading

# Parts of the face's height: how far around the head its surroundings move along, and how far below
# the chin the neck does.
_AROUND, _NECK = 0.4, 0.35
_BORDER = 0.06  # of the canvas' side: where motion and masks fade
_DARKEST, _BRIGHTEST = 0.35, 1.8  # factors of light
_AMBIENT = 0.1  # keeps the ratio of two shadows small
_SIDEWAYS = 0.35  # cosine to the viewer below which a photo shows too little of a surface


@dataclasses.dataclass(frozen=True, eq=False)
class Motion:
    """How a canvas changes when its head does.

    Attributes:
        flow: (H, W, 2) float32, where each pixel comes from, relative to itself, in pixels.
        mirrored: (H, W, 2) float32, the same for the mirror image of what the old view hides.
        hidden: (H, W, 1) float32 in [0, 1], how much of the mirror image is taken.
        light: (H, W, 3) float32, how much brighter colors of the person get, see `_lit`.
    """

    flow: np.ndarray
    mirrored: np.ndarray
    hidden: np.ndarray
    light: np.ndarray

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The changed image (H, W, 3), float32; of a canvas or, after `enlarged`, of a photo's
        part.
        """
        shown, hidden = (_moved(image, flow) for flow in (self.flow, self.mirrored))
        return _lit(self.hidden * hidden + (1 - self.hidden) * shown, self.light)

    def enlarged(self, matrix: np.ndarray, size: tuple[int, int]) -> Motion:
        """The motion in a photo's part of `size` (height, width), to which `matrix` (2, 3) takes
        canvas pixels.
        """
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
        enlarge = lambda x: align.warp(x, matrix, size, border="repeat").reshape(*size, -1)
        flows = enlarge(self.flow * scale), enlarge(self.mirrored * scale)
        return Motion(*flows, enlarge(self.hidden), enlarge(self.light))

    @property
    def touched(self) -> np.ndarray:
        """(H, W) bool: where anything changes."""
        moved = (np.abs(self.flow).max(axis=-1) > 0.05) | (self.hidden[..., 0] > 0.01)
        return moved | (np.abs(self.light - 1).max(axis=-1) > 0.005)


def _lit(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) in [0, 255] under `light` times as much light: dark colors are multiplied
    by it, and bright ones approach white without burning out.
    """
    brighter = 255 * (1 - (1 - np.clip(image / 255, 0, 1)) ** np.maximum(light, 1))
    return np.where(light > 1, brighter, image * light)


def motion(model: HeadModel, old: Head, new: Head, canvas: np.ndarray) -> Motion:
    """The motion from the head that a canvas (H, W, 3) uint8 shows to another."""
    height, width = canvas.shape[:2]
    values, seen, chin, tall = (
        np.asarray(array) for array in _on_surface(model, old, new, height, width)
    )
    rows = np.arange(height, dtype=np.float32)[:, None]
    # The neck turns less and less towards the shoulders.
    neck = smooth(1 - (rows - chin) / (_NECK * tall))
    seed = (seen > 0) & (rows < chin + _NECK * tall)
    around = _falloff(seed, _AROUND * float(tall)) * neck * border_fade(height, width)
    around = around[..., None]
    # Light comes from elsewhere, and the face stays as bright as the photo was exposed.
    values = values.copy()
    bright = 1 + np.median(values[..., 5:][seed & (rows < chin)], axis=0, keepdims=True)
    values[..., 5:] = (1 + values[..., 5:]) / np.maximum(bright, 0.1) - 1
    values = _extended(values, seed, 0.06 * float(tall)) * around
    soft = lambda x, sigma: cv2.GaussianBlur(x, (0, 0), sigma).reshape(x.shape)
    flow, mirrored, hidden, light = np.split(values, (2, 4, 5), axis=-1)
    inside = border_fade(height, width)[..., None] > 0  # blurring reached the border again
    flow, mirrored, hidden, light = (
        soft(x, sigma) * inside
        for x, sigma in (
            (flow, 1.0),
            (mirrored, 1.0),
            (hidden * seed[..., None], 2.0),
            (light, 2.0),
        )
    )
    light = np.clip(1 + light, _DARKEST, _BRIGHTEST)
    unlit = Motion(flow, mirrored, hidden * seed[..., None], np.ones_like(light))
    if np.abs(light - 1).max() < 1e-3:
        return unlit
    person = person_mask(np.rint(unlit.apply(canvas)).clip(0, 255).astype(np.uint8))
    # The head is the person's, also where segmentation misses it.
    person = np.maximum(person, soft(seed.astype(np.float32), 2.0) * inside[..., 0])[..., None]
    return dataclasses.replace(unlit, light=1 + (light - 1) * person)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _on_surface(model: HeadModel, old: Head, new: Head, height: int, width: int):
    """Flow (2), mirrored flow (2), what the old view hides (1) and light less 1 (3) at each pixel
    of the new head (H, W, 8); where that is (H, W); the new face's lowest row, and its height in
    pixels.
    """
    old, new = (fit_to_size(head, height, width) for head in (old, new))
    before, old_normals = posed(model, old)
    points, normals = posed(model, new)
    triangles, mirror = jnp.asarray(model.triangles), jnp.asarray(model.mirror)
    ids, weights = rasterize(points[None], triangles, height, width)
    # Turned away from the viewer, less so now, and less so on the other side.
    facing, other, now = old_normals[:, 2:], old_normals[mirror, 2:], normals[:, 2:]
    ramp = lambda x: jnp.clip(x / 0.2, 0, 1)
    hidden = jnp.where(other > facing, ramp(_SIDEWAYS - facing) * ramp(now - facing), 0.0)
    lit = lambda directions, light: jnp.maximum(shading(directions, light), 0.0) + _AMBIENT
    changed = jnp.any(new.light != old.light)
    light = jnp.where(changed, lit(normals, new.light) / lit(old_normals, old.light) - 1, 0.0)
    values = [before[:, :2] - points[:, :2], before[mirror, :2] - points[:, :2], hidden, light]
    found = interpolate(jnp.concatenate(values, axis=-1), triangles, ids[0], weights[0])
    rows = model.landmarks(points)[:, 1]
    valid = jnp.asarray(model.landmark_valid)
    low = jnp.max(jnp.where(valid, rows, -jnp.inf))
    high = jnp.min(jnp.where(valid, rows, jnp.inf))
    return found, (ids[0] >= 0).astype(jnp.float32), low, low - high


def _moved(canvas: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    image = canvas.astype(np.float32)
    return cv2.remap(image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _extended(values: np.ndarray, seed: np.ndarray, sigma: float) -> np.ndarray:
    """Values (H, W, C) on a region, and blurred ones of its nearest part everywhere else."""
    known = values * seed[..., None]
    total, weight = np.zeros(known.shape, np.float32), np.zeros(seed.shape, np.float32)
    for step in (1, 2, 4, 8):  # the finest that reaches a pixel counts most
        share = cv2.GaussianBlur(seed.astype(np.float32), (0, 0), sigma * step)
        blurred = np.stack(
            [cv2.GaussianBlur(plane, (0, 0), sigma * step) for plane in np.moveaxis(known, -1, 0)],
            axis=-1,
        )
        importance = 100.0**-step
        total, weight = total + importance * blurred, weight + importance * share
    return np.where(seed[..., None], values, total / np.maximum(weight, 1e-30)[..., None])


def _falloff(region: np.ndarray, reach: float) -> np.ndarray:
    """(H, W) float32: 1 on a region, falling to 0 at `reach` pixels from it."""
    outside = (~region).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return smooth(1 - distance / max(reach, 1e-6))


def border_fade(height: int, width: int) -> np.ndarray:
    """(H, W) float32: 0 at a canvas' border, where the photo continues, and 1 a little inside."""
    ramp = lambda side: (np.minimum(np.arange(side), np.arange(side)[::-1]) - 1) / (_BORDER * side)
    return smooth(np.minimum.outer(ramp(height), ramp(width)))


def smooth(ramp: np.ndarray) -> np.ndarray:
    """A ramp, cut to [0, 1], without corners at its ends (3x² − 2x³); float32."""
    ramp = np.clip(ramp, 0, 1).astype(np.float32)
    return ramp * ramp * (3 - 2 * ramp)
