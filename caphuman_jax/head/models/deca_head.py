"""DECA's numbers of a FLAME head ↔ `Head`, as every way through this package takes it; and either
from a photo.

With DECA's weights: `head_by_deca`. Without them: `fitting.head_from_photo` with a FLAME head,
whose numbers `code_from_photo` gives in DECA's form.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from caphuman_jax.errors import HeadError
from caphuman_jax.face.landmark_indices import COUNT, IBUG_68
from caphuman_jax.head import pose as rotations
from caphuman_jax.head import texture
from caphuman_jax.head.base import HeadEstimator, HeadModel, HeadSource
from caphuman_jax.head.fitting import head_from_photo
from caphuman_jax.head.head import Head
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.models import deca, flame_files
from caphuman_jax.head.models.deca import SIZE, FlameCode
from caphuman_jax.head.models.flame_head import JOINT_NAMES, UNITS, FlameHead
from caphuman_jax.head.models.flame_loading import load_flame_head
from caphuman_jax.head.texture import TextureSpace
from caphuman_jax.models.network import Network
from caphuman_jax.nn.typing import Array

log = logging.getLogger("caphuman_jax")

VARIABLE = "CAPHUMAN_FLAME"
"""The environment variable that names FLAME's file or folder."""

# Deviation of a vertex's color from the texture's; large, as neighbors err alike.
_COLOR_NOISE = 1.0
_HIGHEST = jax.lax.Precision.HIGHEST


@jax.jit
def head_of_code(model: FlameHead, space: TextureSpace, code: FlameCode) -> Head:
    """DECA's numbers of one head as a `Head` in the picture that they are for; its albedo is a
    texture (S,S,3).

    The head's place among vertices, pose and camera is exact. Nothing is known of how well it fits:
    residual 0."""
    rotation = rotations.from_vector(code.pose[:3])
    count = len(model.expression_names) - len(JOINT_NAMES)
    if code.expression.shape[-1] != count or code.shape.shape[-1] != model.identity_basis.shape[0]:
        raise HeadError(
            f"these numbers have {code.shape.shape[-1]} of shape and {code.expression.shape[-1]} "
            f"of expression, the FLAME model "
            f"was loaded with {model.identity_basis.shape[0]} and {count}"
        )
    zero = jnp.zeros(3, jnp.float32)
    expression = jnp.concatenate([code.expression, zero, code.pose[3:], zero, zero])
    origin = model.turned_origin(code.shape, expression, rotation)
    pixels = SIZE / 2 * code.crop[2] / (SIZE - 1)
    place = (origin[:2] + code.camera[1:]) * code.camera[0] * jnp.asarray([1, -1], jnp.float32)
    return Head(
        identity=code.shape,
        expression=expression,
        rotation=rotation,
        scale=code.camera[0] * pixels / UNITS,
        translation=(place + 1) * pixels + code.crop[:2],
        size=code.size,
        light=code.light,
        albedo=texture.texture(space, code.texture),
        residual=jnp.float32(0),
    )


def code_of_head(
    model: FlameHead, head: Head, crop: Float[Array, "3"], texture: Float[Array, " n"]
) -> FlameCode:
    """The inverse of `head_of_code` for a crop (3,) of the head's picture: a head that was fitted,
    in DECA's numbers.

    The neck's and the eyes' turns are left out, as DECA has none; texture (n,) are the coefficients
    to note."""
    coefficients, pose = model.split_expression(head.expression)
    origin = model.turned_origin(head.identity, head.expression, head.rotation)
    pixels = SIZE / 2 * crop[2] / (SIZE - 1)
    scale = head.scale * UNITS / pixels
    place = ((head.translation - crop[:2]) / pixels - 1) / scale * jnp.asarray([1, -1], jnp.float32)
    return FlameCode(
        shape=head.identity,
        texture=texture,
        expression=coefficients,
        pose=jnp.concatenate([to_vector(head.rotation), pose[6:9]]),
        camera=jnp.concatenate([scale[None], place - origin[:2]]),
        light=head.light,
        crop=crop,
        size=head.size,
    )


def lacking(model: FlameHead, path: str | os.PathLike) -> list[str]:
    """What FLAME, loaded from this file or folder, lacks to be rendered as DECA does."""
    folder, needed = flame_files.folder_of(Path(path)), []
    if model.flame.name.startswith("flame2023"):
        needed.append(
            f"FLAME 2020 (generic_model.pkl), whose numbers are DECA's, instead of "
            f"{model.flame.name}"
        )
    if model.flame.uv is None:
        needed.append(f"{flame_files.TEMPLATE} in {folder}")
    if not (folder / flame_files.TEXTURE).is_file():
        needed.append(f"{flame_files.TEXTURE} in {folder}")
    return needed


@functools.cache
def _texture(folder: Path) -> TextureSpace:
    return flame_files.load_texture(folder)


def head_by_deca(
    model: FlameHead,
    space: TextureSpace,
    network,
    photo: UInt8[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "n d"],
) -> Head:
    """The head that DECA sees in a photo (H,W,3) uint8, with how far its landmarks lie from the
    given 68 or 478 as its residual.

    network: DECA's encoder. Raises HeadError where the two have nothing to do with one
    another."""
    with jax.default_matmul_precision("highest"):
        head = head_of_code(model, space, deca.estimate(network, photo, landmarks))
        ours = np.asarray(_landmarks(model, head))[list(IBUG_68), :2]
    given = np.asarray(landmarks)[:, :2]
    theirs = given[list(IBUG_68)] if len(given) == COUNT else given
    inner = slice(17, None)  # The outline slides along the head.
    # Outer corners of the eyes in iBUG's order; in profile they are close together, and the face's
    # height gives the unit.
    unit = max(
        np.linalg.norm(theirs[36] - theirs[45]), 0.6 * np.linalg.norm(theirs[8] - theirs[27])
    )
    residual = np.median(np.linalg.norm(ours - theirs, axis=-1)[inner]) / unit
    if not residual < 0.5:
        raise HeadError("DECA found no head where the landmarks of this photo are")
    return dataclasses.replace(head, residual=jnp.float32(residual))


@jax.jit
def _landmarks(model: FlameHead, head: Head) -> Array:
    return model.landmarks(posed(model, head)[0])


def code_from_photo(
    model: FlameHead,
    space: TextureSpace,
    photo: UInt8[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "478 3"],
    expression: Float[np.ndarray, " e"],
    mask: Shaped[np.ndarray, "h w"] | None = None,
) -> FlameCode:
    """DECA's numbers without DECA: FLAME fitted to 478 landmarks, light and albedo from the photo.
    See `fitting.head_from_photo`.
    """
    head = head_from_photo(model, photo, landmarks, expression, mask)
    crop = jnp.asarray(deca.crop_of_box(deca.landmark_box(landmarks)))
    return code_of_head(model, head, crop, texture_of_albedo(model, space, head.albedo))


@jax.jit
def texture_of_albedo(
    model: FlameHead, space: TextureSpace, albedo: Float[Array, "v 3"]
) -> Float[Array, " n"]:
    """Coefficients (n,) of the texture nearest to colors of vertices (V,3) on the face: ridge, the
    prior being N(0, 1).
    """
    # A vertex on a seam has several places in the texture; any will do.
    places = jnp.zeros((albedo.shape[0], 2), jnp.float32)
    places = places.at[jnp.asarray(model.triangles).reshape(-1)].set(
        jnp.asarray(model.flame.uv)[jnp.asarray(model.flame.uv_triangles).reshape(-1)]
    )
    weight = jnp.asarray(model.face_weight)[:, None] / _COLOR_NOISE
    flat = lambda image: (texture.sample_texture(image, places) * weight).reshape(-1)
    basis = jax.lax.map(flat, jnp.asarray(space.basis))
    wanted = (albedo * weight).reshape(-1) - flat(jnp.asarray(space.mean))
    normal = jnp.matmul(basis, basis.T, precision=_HIGHEST) + jnp.eye(
        basis.shape[0], dtype=jnp.float32
    )
    return jnp.linalg.solve(normal, jnp.matmul(basis, wanted, precision=_HIGHEST))


def to_vector(rotation: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """Axis-angle (3,) in radians of a rotation (3,3): the inverse of `pose.from_vector`, for angles
    below 180°.
    """
    twice_sine = jnp.stack(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    length = jnp.linalg.norm(twice_sine)
    angle = jnp.arctan2(length, jnp.trace(rotation) - 1)
    return twice_sine * jnp.where(length > 1e-6, angle / jnp.maximum(length, 1e-6), 0.5)


class FlameSource(HeadSource):
    """FLAME, whose files users obtain themselves; DECA estimates its heads."""

    networks = ("deca_encoder",)
    networks_title, networks_option = "DECA's encoder", "--deca deca_model.tar"
    import_option = "--flame DIR"
    opens_paths = True
    setup = (
        f"set {VARIABLE} to the folder with generic_model.pkl, {flame_files.EMBEDDING}, "
        f"{flame_files.TEMPLATE} and {flame_files.TEXTURE}"
    )

    def load(self, path: Path | None) -> FlameHead:
        return load_flame_head(self._path(path))

    def files(self, path: Path | None) -> dict[str, Path]:
        path = self._path(path)
        load_flame_head(path)  # names what is missing
        folder = flame_files.folder_of(path)
        names = (
            *flame_files.MODEL_NAMES,
            flame_files.EMBEDDING,
            flame_files.TEMPLATE,
            flame_files.TEXTURE,
        )
        return {f"flame/{name}": folder / name for name in names if (folder / name).is_file()}

    def check(self, path: Path | None, estimated: bool) -> None:
        path = self._path(path)
        model = load_flame_head(path)
        missing = lacking(model, path) if estimated else []
        if missing:
            raise HeadError(f"{path} lacks what DECA needs: {'; '.join(missing)}")
        if estimated:
            flame_files.load_texture(flame_files.folder_of(path))

    def estimator(
        self, model: HeadModel, path: Path | None, networks: Mapping[str, Network]
    ) -> HeadEstimator | None:
        """`head_by_deca`, which gives heads as CapHuman's published weights know them. Where
        something that it needs is missing, a warning names it and the result is None. Raises
        HeadError for a texture space that cannot be read."""
        assert isinstance(model, FlameHead), "of `load`"
        path, network = self._path(path), networks.get("deca_encoder")
        missing = lacking(model, path)
        if network is None:
            missing = [
                "DECA's encoder in the model folder (caphuman import --deca deca_model.tar)",
                *missing,
            ]
        if missing:
            log.warning(
                "heads are fitted to landmarks and colored from the photo, whereas the published "
                "weights saw DECA's; for those there is missing: %s",
                "; ".join(missing),
            )
            return None
        space = _texture(flame_files.folder_of(path))
        return HeadEstimator("DECA", functools.partial(head_by_deca, model, space, network))

    def estimated_albedo(
        self, model: HeadModel, path: Path | None, networks: tuple[str, ...]
    ) -> tuple[int, ...]:
        assert isinstance(model, FlameHead), "of `load`"
        if "deca_encoder" in networks and not lacking(model, self._path(path)):
            return 256, 256, 3
        return super().estimated_albedo(model, path, networks)

    def _path(self, path: Path | None) -> Path:
        if path is not None:
            return path
        if not os.environ.get(VARIABLE, "").strip():
            raise HeadError(
                f"this model renders its heads with FLAME, which you have to obtain yourself "
                f"(flame.is.tue.mpg.de): {self.setup}"
            )
        return Path(os.environ[VARIABLE]).expanduser()


SOURCE = FlameSource()
