"""From a photo to DECA's crop, and from DECA's numbers to hints, as CapHuman's published weights
know them (arXiv 2012.04012).

The crop puts the centers of its corner pixels on the corners of a square in the photo;
back-projection takes the crop to span 224 pixels over the same square less a 223rd. Both are kept:
the difference is under half a percent of the face."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from caphuman_jax.errors import HeadError, PhotoError
from caphuman_jax.face.landmark_indices import IBUG_68
from caphuman_jax.head import editing, texture
from caphuman_jax.head.models import flame
from caphuman_jax.head.models.flame import Flame
from caphuman_jax.head.rasterizer import interpolate, rasterize
from caphuman_jax.head.spherical_harmonics import shading
from caphuman_jax.head.texture import TextureSpace
from caphuman_jax.head.topology import vertex_normals
from caphuman_jax.models import deca_encoder as encoder
from caphuman_jax.nn.typing import Array

SIZE = encoder.SIZE
_DECA_NAMES = {"texture": "tex", "expression": "exp", "camera": "cam"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlameCode:
    """DECA's numbers of one head and where its crop lay; a pytree, so leading axes make many.

    shape (100), texture (50), expression (50), pose (6) global turn and jaw, axis-angle in radians,
    camera (3) scale, x, y in the crop, light (9,3) SH × RGB; crop (3) left, top and side of the
    square in pixels of a picture whose size (2) is height, width."""

    shape: Array
    texture: Array
    expression: Array
    pose: Array
    camera: Array
    light: Array
    crop: Array
    size: Array


def landmark_box(landmarks: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "4"]:
    """Box (4,) x0, y0, x1, y1 of the brows, eyes, nose, mouth and jaw, from 68 (iBUG) or 478
    (MediaPipe) landmarks (N, 2 or more).
    """
    points = np.asarray(landmarks, np.float64)
    if (
        points.ndim != 2
        or points.shape[0] not in (68, 478)
        or points.shape[1] < 2
        or not np.isfinite(points).all()
    ):
        raise HeadError(
            f"DECA's crop needs 68 or 478 finite landmarks (x, y), not an array of shape "
            f"{points.shape}"
        )
    points = points[list(IBUG_68)] if len(points) == 478 else points
    return np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])


def crop_of_box(box: Sequence[float] | np.ndarray) -> Float[np.ndarray, "3"]:
    """Square (3,) float32 left, top, side round a face's box (4,): about its center, 1.25 × 1.1 ×
    its mean side, in whole pixels.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float64)
    side = int(1.25 * 1.1 * (x1 - x0 + y1 - y0) / 2)
    if side < 4:
        raise PhotoError("the face is under 4 pixels wide in this photo; use a larger photo")
    return np.asarray([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side], np.float32)


def crop_photo(
    photo: UInt8[np.ndarray, "h w 3"], crop: Shaped[Array, "3"]
) -> Float[np.ndarray, "224 224 3"]:
    """The square of a photo (H,W,3) uint8 as what the encoder takes: (224,224,3) float32 in [0,1],
    bilinear, black outside the photo.
    """
    left, top, side = (float(value) for value in np.asarray(crop))
    height, width = photo.shape[:2]
    place = np.arange(SIZE) * (side / (SIZE - 1))
    padded = np.pad(photo, ((1, 1), (1, 1), (0, 0)))

    def weights(start, limit):
        at = np.clip(start + place, -1, limit) + 1
        low = np.minimum(np.floor(at), limit).astype(np.int64)
        return low, (at - low).astype(np.float32)

    (rows, down), (columns, right) = weights(top, height), weights(left, width)
    take = lambda r, c: padded[r[:, None], c[None]].astype(np.float32)
    down, right = down[:, None, None], right[None, :, None]
    upper = take(rows, columns) * (1 - right) + take(rows, columns + 1) * right
    lower = take(rows + 1, columns) * (1 - right) + take(rows + 1, columns + 1) * right
    return (upper * (1 - down) + lower * down) / np.float32(255)


def estimate(network, photo: np.ndarray, landmarks: Float[np.ndarray, "n d"]) -> FlameCode:
    """DECA's numbers of the face with these 68 or 478 landmarks in a photo (H,W,3) uint8. network:
    DECA's encoder.
    """
    photo = np.asarray(photo)
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise HeadError(
            f"a photo for DECA must be height × width × 3 of 8 bits, not {photo.shape} of "
            f"{photo.dtype}"
        )
    crop = crop_of_box(landmark_box(landmarks))
    code = encoder.encode(*network, crop_photo(photo, crop)[None])
    return code_from_numbers({name: part[0] for name, part in code.items()}, crop, photo.shape[:2])


def code_from_numbers(numbers: Mapping[str, np.ndarray], crop: np.ndarray, size) -> FlameCode:
    """DECA's numbers of one head by name, also as DECA itself names them (tex, exp, cam), with or
    without a batch axis of 1.

    crop (3,) left, top and side of the square in pixels of a picture of size (height, width).
    Raises HeadError naming what is missing, misshapen or not finite."""
    wanted = {}
    for name, count in encoder.PARTS.items():
        given = next(
            (numbers[key] for key in (name, _DECA_NAMES.get(name)) if key in numbers), None
        )
        if given is None:
            raise HeadError(f"these are not DECA's numbers of a head: {name} is missing")
        wanted[name] = given, ((9, 3) if name == "light" else (count,))
    wanted |= {"crop": (crop, (3,)), "size": (size, (2,))}
    arrays = {}
    for name, (given, shape) in wanted.items():
        array = np.asarray(given, np.float32)
        if array.size != np.prod(shape) and name not in ("shape", "texture", "expression"):
            raise HeadError(f"DECA's {name} has {array.size} numbers, not {np.prod(shape)}")
        if not np.isfinite(array).all():
            raise HeadError(f"DECA's {name} holds numbers that are not finite")
        arrays[name] = jnp.asarray(array.reshape(shape if array.size == np.prod(shape) else -1))
    if not (arrays["camera"][0] > 0 and arrays["crop"][2] > 0 and (arrays["size"] > 0).all()):
        raise HeadError("DECA's camera, the crop and the picture must have a positive size")
    return FlameCode(**arrays)


def mix(
    reference: FlameCode, wanted: FlameCode, take: str | Iterable[str] = editing.DEFAULT_TAKE
) -> FlameCode:
    """The reference's numbers with parts of the wanted head's: "position" (crop and camera, with
    the picture that they are in), "pose" (global turn), "expression" (with the jaw), "lighting", or
    "all". Shape and texture are always the reference's.
    """
    parts = editing.parse_take(take)
    changes = {}
    if "position" in parts:
        changes |= {"camera": wanted.camera, "crop": wanted.crop, "size": wanted.size}
    if "expression" in parts:
        changes["expression"] = wanted.expression
    turn = wanted if "pose" in parts else reference
    jaw = wanted if "expression" in parts else reference
    changes["pose"] = jnp.concatenate(
        [jnp.asarray(turn.pose)[..., :3], jnp.asarray(jaw.pose)[..., 3:]], axis=-1
    )
    if "lighting" in parts:
        changes["light"] = wanted.light
    return dataclasses.replace(reference, **changes)


def project(points: Float[Array, "n 3"], camera: Float[Array, "3"]) -> Float[Array, "n 3"]:
    """Points (N,3) of a posed FLAME head → (N,3) by the scaled-orthographic camera (3,): x, y in
    [-1,1] of the crop, y down, smaller z nearer.
    """
    shift = jnp.concatenate([camera[1:], jnp.zeros_like(camera[:1])])
    return (points + shift[None]) * camera[0] * jnp.asarray([[1, -1, -1]], points.dtype)


def to_picture(points: Float[Array, "n 3"], crop: Float[Array, "3"]) -> Float[Array, "n 3"]:
    """Points (N,3) of `project` → (N,3) in pixels of the picture that the crop (3,) lies in, z to
    the same scale.
    """
    factor = crop[2] / (SIZE - 1)
    shift = jnp.concatenate([crop[:2], jnp.zeros_like(crop[:1])])
    half = jnp.asarray([SIZE / 2, SIZE / 2, 0], points.dtype)
    return (points * (SIZE / 2) + half[None]) * factor + shift[None]


def crop_at(
    crop: Float[Array, "3"], size: Float[Array, "2"], height: int, width: int
) -> Float[Array, "3"]:
    """The crop (3,) of a picture of `size` (2,) in a picture of height × width: scaled by the
    height, about the center.
    """
    factor = height / size[0]
    middle = (crop[:2] - size[::-1] / 2) * factor + jnp.asarray(
        [width / 2, height / 2], jnp.float32
    )
    return jnp.concatenate([middle, crop[2:] * factor])


@functools.partial(jax.jit, static_argnames=("height", "width", "with_alpha"))
def render_hints(
    model: Flame,
    space: TextureSpace,
    codes: FlameCode,
    height: int,
    width: int,
    with_alpha: bool = False,
):
    """Hints (B,H,W,9) float32 of codes with a leading axis B, on height × width pixels, any size.

    Channels 0-2: world-space normal in [-1,1]; 3-5: albedo RGB, from the texture at every pixel;
    6-8: albedo × shading. Raw: albedo and render may leave [0,1]. Background 0. The head is placed
    relative to the picture (`crop_at`). With `with_alpha`, also where the head is, (B,H,W,1)
    float32 0 or 1."""

    def place(code):
        points = flame.vertices(model, code.shape, code.expression, flame.full_pose(code.pose))
        normals = vertex_normals(points, model.triangles, model.vertex_triangles)
        return to_picture(
            project(points, code.camera), crop_at(code.crop, code.size, height, width)
        ), normals

    points, normals = jax.vmap(place)(codes)
    textures = jax.vmap(lambda coefficients: texture.texture(space, coefficients))(codes.texture)
    return draw(model, points, normals, textures, codes.light, height, width, with_alpha)


def draw(
    model: Flame,
    points: Float[Array, "b v 3"],
    normals: Float[Array, "b v 3"],
    textures: Float[Array, "b s s 3"],
    lights: Float[Array, "b 9 3"],
    height: int,
    width: int,
    with_alpha: bool = False,
):
    """`render_hints` of heads already placed: points (B,V,3) in pixels, normals (B,V,3), textures
    (B,S,S,3), lights (B,9,3).
    """
    ids, weights = rasterize(points, jnp.asarray(model.triangles), height, width)

    def shade(normals, image, light, ids, weights):
        normal = interpolate(normals, model.triangles, ids, weights)
        albedo = flame.texture_at(model, image, ids, weights)
        return jnp.concatenate([normal, albedo, albedo * shading(normal, light)], axis=-1)

    hints = jax.vmap(shade)(normals, textures, lights, ids, weights)
    return (hints, (ids >= 0).astype(jnp.float32)[..., None]) if with_alpha else hints
