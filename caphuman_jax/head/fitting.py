"""Fit a morphable head to the landmarks of a photo: damped Gauss-Newton with Gaussian priors, fixed
work, no randomness.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from caphuman_jax.errors import HeadError
from caphuman_jax.face import crop
from caphuman_jax.face.landmark_indices import COUNT, FACE_OVAL, OUTER_EYE_CORNERS
from caphuman_jax.head import pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head, unstack
from caphuman_jax.head.lighting import estimate_appearance
from caphuman_jax.head.spherical_harmonics import WHITE
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import kept_programs

# Deviations, in distances of the outer eye corners: of a landmark in the picture, and of its depth
# as the network guesses it.
_NOISE, _DEPTH_NOISE = 0.02, 0.12
_ITERATIONS = 12
_SQUARE = 512


@jax.jit
def fit(
    model: HeadModel,
    landmarks: Float[Array, "478 3"],
    expression: Float[Array, " e"],
    size: Float[Array, "2"],
) -> Head:
    """Head from the landmarks of one face; vmap it over landmarks, expressions and sizes for many.

    landmarks (478,3): x, y in pixels of the picture (y down), z in the same unit, smaller nearer (a
    weak cue); expression (52,) in [0,1], the blendshape network's weights, refined near them; size
    (2,) height and width of the picture in pixels. Light is white and even and albedo mid-grey
    until `lighting.estimate_appearance` fills them in. The unknowns — rotation, scale, translation,
    identity ~ N(0,1), expression ~ N(given, 0.12²) within [0,1] — are solved together; landmark
    errors are weighed by Huber's rule, so a hidden or misplaced part of the face does not pull the
    rest."""
    with jax.default_matmul_precision("highest"):
        return _fit(
            model,
            jnp.asarray(landmarks, jnp.float32),
            jnp.asarray(expression, jnp.float32),
            jnp.asarray(size, jnp.float32),
        )


@jax.jit
def fit_batch(
    model: HeadModel,
    landmarks: Float[Array, "b 478 3"],
    expressions: Float[Array, "b e"],
    sizes: Float[Array, "b 2"],
) -> Head:
    """`fit` for landmarks (B,478,3), expressions (B,E), sizes (B,2): Head with a leading axis B."""
    return jax.vmap(fit, in_axes=(None, 0, 0, 0))(model, landmarks, expressions, sizes)


@kept_programs.jit
def heads_from_photos(
    model: HeadModel,
    photos: Float[Array, "b h w 3"],
    landmarks: Float[Array, "b 478 3"],
    expressions: Float[Array, "b e"],
    masks: Shaped[Array, "b h w"] | None = None,
) -> Head:
    """Whole heads, light and albedo included, of a batch of photos of one size: Head with a leading
    axis B.

    photos (B,H,W,3) float32 in [0,1]; landmarks (B,478,3) in their pixels; expressions (B,52) in
    the model's order (see `HeadModel.expression_from_arkit`); masks (B,H,W) where each photo shows
    the face, or None. Best on crops whose face is 100-400 px wide: each vertex takes the color of
    one place of the photo."""
    batch, height, width = photos.shape[:3]
    sizes = jnp.broadcast_to(jnp.asarray([height, width], jnp.float32), (batch, 2))
    return estimate_appearance(
        model, fit_batch(model, landmarks, expressions, sizes), photos, masks
    )


def head_from_photo(
    model: HeadModel,
    photo: np.ndarray,
    landmarks: np.ndarray,
    expression: Float[Array, " e"],
    mask: Shaped[np.ndarray, "h w"] | None = None,
) -> Head:
    """The head, light and albedo included, of one photo of any size; its position is in that
    photo's pixels.

    photo (H,W,3) uint8 RGB; landmarks (478,3) in its pixels; expression (E,) in the model's order;
    mask (H,W) where the photo shows the face, or None. Colors are read from a 512-pixel square cut
    round the head: of one size for every photo, so that nothing is compiled twice. Raises HeadError
    if landmarks or photo are not that, or if the landmarks are not a face's."""
    photo, landmarks = np.asarray(photo), np.asarray(landmarks, np.float32)
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise HeadError(
            f"a photo for the head must be height × width × 3 of 8 bits, not {photo.shape} of "
            f"{photo.dtype}"
        )
    if landmarks.shape != (COUNT, 3) or not np.all(np.isfinite(landmarks)):
        raise HeadError(
            f"the head is fitted to {COUNT} finite landmarks (x, y, z), not an array of shape "
            f"{landmarks.shape}"
        )
    if np.ptp(landmarks[:, :2], axis=0).min() < 4:
        raise HeadError("the face is under 4 pixels wide in this photo; use a larger photo")
    center, side = crop.head_square(landmarks)
    square, matrix, (left, top, right, bottom) = crop.crop_square(photo, center, side, _SQUARE)
    factor, shift = np.float32(_SQUARE / side), matrix[:, 2].astype(np.float32)
    trusted = np.zeros((_SQUARE, _SQUARE), np.float32)
    trusted[int(top) : int(bottom), int(left) : int(right)] = 1
    if mask is not None:
        painted = np.repeat(np.asarray(mask, np.float32)[..., None] * 255, 3, axis=-1).astype(
            np.uint8
        )
        trusted *= crop.crop_square(painted, center, side, _SQUARE)[0][..., 0] / np.float32(255)
    inside = landmarks * factor + np.append(shift, np.float32(0))
    heads = heads_from_photos(
        model,
        square[None].astype(np.float32) / 255,
        inside[None],
        np.asarray(expression, np.float32)[None],
        trusted[None],
    )
    [head] = unstack(jax.device_get(heads))  # what follows on the host needs no compiler
    if not float(head.residual) < 0.2:
        raise HeadError(
            "no head could be fitted to the landmarks of this photo: they do not look like a face"
        )
    return dataclasses.replace(
        head,
        scale=head.scale / factor,
        translation=(head.translation - shift) / factor,
        size=np.asarray(photo.shape[:2], np.float32),
    )


def _fit(model: HeadModel, observed: Array, expression0: Array, size: Array) -> Head:
    flip = jnp.asarray([[1.0, -1.0, -1.0]], jnp.float32)
    eyes = observed[jnp.asarray(OUTER_EYE_CORNERS), :2]
    unit = jnp.maximum(jnp.linalg.norm(eyes[0] - eyes[1]), 1e-3)
    # In profile the eyes are close together in the picture: the face's height then gives the unit.
    unit = jnp.maximum(unit, 0.6 * jnp.linalg.norm(observed[10, :2] - observed[152, :2]))
    center = jnp.mean(observed, axis=0)
    target = (observed - center[None]) / unit

    mean = model.landmarks(model.mean)
    origin = jnp.mean(mean, axis=0)
    count, faces = len(model.identity_basis), len(model.expression_names)
    place, directions = model.landmark_functions(origin)
    deviations, least, greatest = (jnp.asarray(limit) for limit in model.expression_limits())
    trust = jnp.asarray(model.landmark_valid, jnp.float32) * jnp.asarray(_landmark_trust())
    deviation = jnp.asarray([_NOISE, _NOISE, _DEPTH_NOISE], jnp.float32)
    prior = jnp.concatenate(
        [jnp.ones(count, jnp.float32), 1 / deviations**2, jnp.full(7, 1e-3, jnp.float32)]
    )
    expected = jnp.concatenate([jnp.zeros(count, jnp.float32), expression0])
    bound = jnp.asarray(model.identity_bound)
    low, high = jnp.concatenate([-bound, least]), jnp.concatenate([bound, greatest])

    def residuals(coefficients, rotation, scale, shift):
        points = place(coefficients) @ rotation.T
        return points, scale * points * flip + shift[None] - target

    def step(_, state):
        coefficients, rotation, scale, shift = state
        points, error = residuals(coefficients, rotation, scale, shift)
        distance = jnp.linalg.norm(error[:, :2], axis=-1) / _NOISE
        weight = (trust / jnp.maximum(1, distance / 1.5))[:, None] / (deviation**2)[None]
        # Columns: identity and expression, a small turn about x, y, z, relative scale, shift.
        x, y, z = points.T
        zero = jnp.zeros_like(x)
        turns = jnp.stack(
            [
                jnp.stack([zero, -z, y], -1),
                jnp.stack([z, zero, -x], -1),
                jnp.stack([-y, x, zero], -1),
                points,
            ]
        )
        moves = jnp.concatenate([directions(coefficients) @ rotation.T, turns])
        columns = (scale * flip)[None] * moves
        columns = jnp.concatenate(
            [columns, jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32)[:, None], (3, *mean.shape))]
        )
        columns = columns.reshape(columns.shape[0], -1)
        weighted = columns * weight.reshape(-1)[None]
        pull = jnp.concatenate(
            [prior[: count + faces] * (coefficients - expected), jnp.zeros(7, jnp.float32)]
        )
        normal = weighted @ columns.T + jnp.diag(prior)
        gradient = weighted @ error.reshape(-1) + pull
        # Projected Newton: a weight at its bound that wants to go beyond it is held there, or the
        # others would make room for a move that never comes.
        held = jnp.concatenate(
            [
                (coefficients <= low) & (gradient[:-7] > 0)
                | (coefficients >= high) & (gradient[:-7] < 0),
                jnp.zeros(7, bool),
            ]
        )
        both = held[:, None] | held[None]
        normal = jnp.where(both, 0, normal) + jnp.diag(held.astype(jnp.float32))
        change = -jax.scipy.linalg.solve(normal, jnp.where(held, 0, gradient), assume_a="pos")
        turn = jnp.clip(change[-7:-4], -0.5, 0.5)
        return (
            jnp.clip(coefficients + change[: count + faces], low, high),
            pose.from_vector(turn) @ rotation,
            scale * jnp.exp(jnp.clip(change[-4], -0.5, 0.5)),
            shift + change[-3:],
        )

    state = (expected, *_start(place(expected), target, trust, flip))
    coefficients, rotation, scale, shift = jax.lax.fori_loop(0, _ITERATIONS, step, state)
    rotation = pose.orthonormal(rotation)
    _, error = residuals(coefficients, rotation, scale, shift)
    distance = jnp.where(trust > 0, jnp.linalg.norm(error[:, :2], axis=-1), jnp.nan)

    # Back to pixels, and from the landmarks' center to the model's own origin.
    own = scale * unit * (rotation @ origin)[:2] * flip[0, :2]
    translation = shift[:2] * unit + center[:2] - own
    vertices = len(model.mean)
    return Head(
        identity=coefficients[:count],
        expression=coefficients[count:],
        rotation=rotation,
        scale=scale * unit,
        translation=translation,
        size=size,
        light=jnp.asarray(WHITE),
        albedo=jnp.full((vertices, 3), 0.5, jnp.float32),
        residual=jnp.nanmedian(distance),
    )


def _start(mean: Array, target: Array, trust: Array, flip: Array):
    """Rotation, scale and shift of the mean face by weighted similarity of the 3D points (Umeyama,
    1991).
    """
    share = (trust / jnp.sum(trust))[:, None]
    center, center_target = jnp.sum(mean * share, axis=0), jnp.sum(target * share, axis=0)
    a, b = mean - center[None], (target - center_target[None]) * flip
    u, singular, vt = jnp.linalg.svd((b * share).T @ a)
    sign = jnp.concatenate([jnp.ones(2, jnp.float32), jnp.sign(jnp.linalg.det(u @ vt))[None]])
    rotation = (u * sign[None]) @ vt
    scale = jnp.sum(singular * sign) / jnp.sum(share * a * a)
    return rotation, scale, center_target - scale * (rotation @ center) * flip[0]


def _landmark_trust() -> np.ndarray:
    """Weight (478,) of a landmark: the outline slides along the head as it turns, so it counts
    less.
    """
    trust = np.ones(COUNT, np.float32)
    trust[list(FACE_OVAL)] = 0.3
    return trust
