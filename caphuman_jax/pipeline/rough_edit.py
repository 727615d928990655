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
from caphuman_jax.head import topology
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.rasterizer import interpolate, rasterize
from caphuman_jax.head.spherical_harmonics import shading

# Parts of the face's height: how far around the head its surroundings move along, and how far below
# the chin the neck does.
_AROUND, _NECK = 0.6, 0.35
_GENTLE = 2.0  # surroundings of this many times the largest motion are not folded
_BORDER = 0.06  # of the canvas' side: where motion and masks fade
_DARKEST, _BRIGHTEST = 0.35, 1.8  # factors of light
_AMBIENT = 0.1  # keeps the ratio of two shadows small
_EDGE = 0.05  # of the face's height: half of what its flow takes to become that around it
# The mesh moves less than faces do: this many times its motion shows the expression asked for.
_STRONGER = 1.4
# Of the face's height: a point that an expression moves by more is not what the photo shows.
_RESHAPED = 0.02
_INNER = (topology.TONGUE, topology.LOWER_TEETH, topology.UPPER_TEETH, topology.MOUTH_INSIDE)
_SMOOTH = 0.025  # of the face's height: what a turned face's flow, and light, is blurred by
_SIDEWAYS = 0.1  # cosine to the viewer below which a photo shows too little of a surface


@dataclasses.dataclass(frozen=True, eq=False)
class Motion:
    """How a canvas changes when its head does.

    Attributes:
        flow: (H, W, 2) float32, where each pixel comes from, relative to itself, in pixels.
        mirrored: (H, W, 2) float32, the same for the mirror image of what the old view hides.
        hidden: (H, W, 1) float32 in [0, 1], how much of the mirror image is taken.
        reshaped: (H, W, 1) float32 in [0, 1], where the photo's pixels are no guide: the face has
            another expression or another person's shape there, or the old view hides it.
        light: (H, W, 3) float32, how much brighter colors of the person get, see `_lit`.
    """

    flow: np.ndarray
    mirrored: np.ndarray
    hidden: np.ndarray
    reshaped: np.ndarray
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
        return Motion(*flows, *map(enlarge, (self.hidden, self.reshaped, self.light)))

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
    values, seen, chin, tall = map(np.asarray, _on_surface(model, old, new, height, width))
    turned, bent, mirrored, hidden, reshaped, light, inner = np.split(
        values, (2, 4, 6, 7, 8, 11), axis=-1
    )
    tall, rows = float(tall), np.arange(height, dtype=np.float32)[:, None]
    face = face_region(model, new, height, width) & (seen > 0)
    head = (seen > 0) & (rows < chin + _NECK * tall)
    inside = border_fade(height, width)
    # The neck turns less and less towards the shoulders.
    fade = smooth(1 - (rows - chin) / (_NECK * tall)) * inside
    # A silhouette's flow jumps from surface to surface, and so does that of lips and teeth when the
    # head turns. So only the face's is taken, and hair, ears, neck and teeth follow it.
    outer = inner[..., 0] < 0.5
    turned = _blurred(_continued(turned, face & outer, tall), _SMOOTH * tall)
    flow = turned + _STRONGER * _continued(bent, face, tall)
    reach = max(_AROUND * tall, _GENTLE * float(np.abs(flow[face]).max(initial=0)))
    around = (_falloff(face, reach) * fade)[..., None]
    covered, kept = face[..., None], inside[..., None] > 0  # blurring reaches the border again
    depth = cv2.distanceTransform(face.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    unlit = Motion(
        _blurred(flow * around, 1.5) * kept,
        _blurred(mirrored * around, 1.5) * kept,
        _blurred(hidden * covered, 2.0) * smooth(depth / (_EDGE * tall))[..., None] * kept,
        _blurred(np.maximum(hidden, reshaped) * covered, 4.0) * kept,
        np.ones((height, width, 3), np.float32),
    )
    # Light comes from elsewhere, and the face stays as bright as the photo was exposed.
    bright = 1 + (np.median(light[face], axis=0) if face.any() else 0)
    light = _extended((1 + light) / np.maximum(bright, 0.1) - 1, head & outer, 0.06 * tall)
    light = light * (_falloff(head, _AROUND * tall) * fade)[..., None]
    light = _blurred(light, _SMOOTH * tall) * kept
    light = np.clip(1 + light, _DARKEST, _BRIGHTEST)
    if np.abs(light - 1).max() < 1e-3:
        return unlit
    person = surely_person(np.rint(unlit.apply(canvas)).clip(0, 255).astype(np.uint8))[..., None]
    # The face is the person's, also where segmentation misses it.
    person = np.maximum(person, _blurred(covered.astype(np.float32), 2.0) * kept)
    return dataclasses.replace(unlit, light=1 + (light - 1) * person)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """An image (H, W, C), blurred."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _on_surface(model: HeadModel, old: Head, new: Head, height: int, width: int):
    """What the new head shows at each pixel (H, W, 12): flow of the pose (2) and of the expression
    (2), mirrored flow (2), what the old view hides (1), what has another shape (1), light less 1
    (3), and what is inside the mouth (1); where that is (H, W); the new face's lowest row, and its
    height in pixels.
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
    rows = model.landmarks(points)[:, 1]
    valid = jnp.asarray(model.landmark_valid)
    low = jnp.max(jnp.where(valid, rows, -jnp.inf))
    high = jnp.min(jnp.where(valid, rows, jnp.inf))
    unchanged = posed(model, dataclasses.replace(new, expression=old.expression))[0]
    apart = jnp.linalg.norm(points - unchanged, axis=-1, keepdims=True) / (low - high)
    same_person = jnp.all(new.identity == old.identity)
    reshaped = jnp.where(same_person, jnp.clip(apart / _RESHAPED - 0.75, 0, 1), 1.0)
    flows = [
        before[:, :2] - unchanged[:, :2],
        unchanged[:, :2] - points[:, :2],
        before[mirror, :2] - points[:, :2],
    ]
    inner = jnp.isin(jnp.asarray(model.parts), jnp.asarray(_INNER))[:, None].astype(jnp.float32)
    values = jnp.concatenate([*flows, hidden, reshaped, light, inner], axis=-1)
    found = interpolate(values, triangles, ids[0], weights[0])
    return found, (ids[0] >= 0).astype(jnp.float32), low, low - high


def surely_person(image: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: 1 on the person in an image (H, W, 3) uint8, with a short edge."""
    return smooth(2 * person_mask(image) - 0.6)


def face_region(model: HeadModel, head: Head, height: int, width: int) -> np.ndarray:
    """(H, W) bool: the hull of a head's landmarks."""
    points = np.asarray(model.landmarks(posed(model, fit_to_size(head, height, width))[0]))
    points = points[np.asarray(model.landmark_valid), :2].astype(np.float32)
    region = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(region, np.round(cv2.convexHull(points)).astype(np.int32), 1)
    return region > 0


def _moved(canvas: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    image = canvas.astype(np.float32)
    return cv2.remap(image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _continued(flow: np.ndarray, face: np.ndarray, tall: float) -> np.ndarray:
    """A flow (H, W, 2) known on the face (H, W) bool, without a step at its edge everywhere else:
    the face's shift, turn and growth, and blurred what its nearest part does besides.
    """
    rows, columns = np.nonzero(face)
    if not len(rows):
        return np.zeros_like(flow)
    zero, one = np.zeros(len(rows)), np.ones(len(rows))
    # (u, v) = (a·x − b·y + c, b·x + a·y + d)
    equations = np.concatenate(
        [np.stack([columns, -rows, one, zero], 1), np.stack([rows, columns, zero, one], 1)]
    )
    known = flow[rows, columns].T.reshape(-1)
    a, b, c, d = np.linalg.lstsq(equations, known, rcond=None)[0]
    y, x = np.mgrid[: face.shape[0], : face.shape[1]]
    rigid = np.stack([a * x - b * y + c, b * x + a * y + d], axis=-1).astype(np.float32)
    rest = flow - rigid
    blurred = _extended(rest, face, _EDGE * tall, everywhere=True)
    depth = cv2.distanceTransform(face.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    exact = smooth(depth / (2 * _EDGE * tall))[..., None] * face[..., None]
    return rigid + exact * np.where(face[..., None], rest, 0) + (1 - exact) * blurred


def _extended(
    values: np.ndarray, seed: np.ndarray, sigma: float, everywhere: bool = False
) -> np.ndarray:
    """Values (H, W, C) on a region, and blurred ones of its nearest part everywhere else;
    with `everywhere` also on the region.
    """
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
    blurred = total / np.maximum(weight, 1e-30)[..., None]
    return blurred if everywhere else np.where(seed[..., None], values, blurred)


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
