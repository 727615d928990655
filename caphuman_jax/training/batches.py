"""What a training step needs of a batch as `data_pipeline.loading` gives it, made on the
accelerator: pictures and heads changed together, hints rendered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import from_picture, render_hints_batch, unpack_hints
from data_pipeline.loading import augment

PASSED_ON = (
    "index",
    "weight",
    "moments",
    "text",
    "image_tokens",
    "recognition",
    "without_text",
    "without_identity",
)


def assemble(batch: Mapping, head_model: HeadModel | None, size: int) -> dict:
    """Arrays of B rows for a step on pictures of `size`, of a loader's batch (see `make_loader`).
    Pure, to be called inside of `jax.jit`.

    pictures (B, size, size, 3) float32 in [-1, 1], where the batch has no moments; hints (B, size,
    size, 9) float32 as of `render_hints_batch` (head_model may be None where they are stored as
    pictures); region (B, size, size, 1): 1 in the face; area (B, size, size, 1): 1 where the photo
    is, 0 where its edge is repeated; token_ids (B, 77) int32; identity_pictures (B, s, s, 3)
    float32 in [0, 1], where it has no image tokens; and unchanged, where they are there: PASSED_ON.
    Moments are those of the mirror image already.

    Rendering takes all triangles of a batch at once: over a mesh call this by
    `sharding.over_batch`, each device for its own rows."""
    change, light = batch["change"], batch["light"]
    side = (
        batch["head"]["size"][:, 0]
        if "head" in batch
        else jnp.full(light.shape, batch["hints"].shape[2], jnp.float32)
    )
    coordinates = augment.source_coordinates(change, side[:, None, None], size)
    made = {name: batch[name] for name in PASSED_ON if name in batch}
    made["token_ids"] = batch["caption_ids"]
    made["region"] = _warped(batch["region"], coordinates, side)
    # Pixel centers are at integers in `coordinates`, half a pixel inside of what is covered.
    made["area"] = augment.valid_area(coordinates, batch["covered"] * side[:, None] - 0.5)
    if "identity_input" in batch:
        made["identity_pictures"] = batch["identity_input"].astype(jnp.float32) / 255
    made["hints"] = (
        _rendered(batch, head_model, size)
        if "head" in batch
        else _stored_hints(batch["hints"], change, coordinates, side)
    )
    if "picture" in batch:
        gain = light[:, None, None, None]
        made["pictures"] = (
            jnp.minimum(_warped(batch["picture"], coordinates, side) * gain, 1) * 2 - 1
        )
        raw = "head" in batch and not head_model.clips_hints(batch["head"]["albedo"].shape[1:])
        most = jnp.inf if raw else 1.0
        made["hints"] = jnp.concatenate(
            [made["hints"][..., :3], jnp.minimum(made["hints"][..., 3:] * gain, most)], axis=-1
        )
    return made


def _warped(pictures, coordinates, side):
    """8-bit pictures (B, h, h, C) of the stored square, of whatever resolution, at coordinates in
    its pixels; float32 in [0, 1].
    """
    scale = (pictures.shape[1] / side)[:, None, None, None]
    return augment.warp(pictures, (coordinates + 0.5) * scale - 0.5) / 255


def _rendered(batch: Mapping, model: HeadModel, size: int):
    """Hints of the heads as they stand in the changed pictures.

    A head is never mirrored itself: the hints are, so that the mirror image is exact. Rolling and
    moving it before are then mirrored, too."""
    mirror, numbers = batch["change"]["mirror"], batch["head"]
    heads = Head(
        **{name: value for name, value in numbers.items() if name != "albedo"},
        albedo=numbers["albedo"].astype(jnp.float32) / 255,
        residual=jnp.zeros_like(numbers["scale"]),
    )
    if "moments" in batch:  # Mirrored at most: the middle is cut out.
        heads = dataclasses.replace(
            heads,
            translation=heads.translation + (size - heads.size) / 2,
            size=jnp.full_like(heads.size, size),
        )
    else:
        move = jax.vmap(
            lambda head, matrix: transform_head(head, model, matrix, float(size), float(size))
        )
        heads = move(heads, _matrices(batch["change"], heads.size[:, 0], size))
    hints = render_hints_batch(model, heads, size, size)
    flipped = hints[:, :, ::-1] * jnp.asarray([-1.0] + [1.0] * 8, jnp.float32)
    return jnp.where(mirror[:, None, None, None], flipped, hints)


def _matrices(change: Mapping, side, size: int):
    """Changes of picture (B, 2, 3), stored pixel → new pixel (see camera), after which a mirroring
    makes what `change` asks for.
    """
    sign = jnp.where(change["mirror"], -1.0, 1.0)
    cos, sin = (
        change["scale"] * jnp.cos(change["angle"]),
        sign * change["scale"] * jnp.sin(change["angle"]),
    )
    x, y = sign * change["shift"][:, 0] * size + size / 2, change["shift"][:, 1] * size + size / 2
    middle = side / 2
    return jnp.stack(
        [
            jnp.stack([cos, -sin, x - (cos - sin) * middle], axis=-1),
            jnp.stack([sin, cos, y - (sin + cos) * middle], axis=-1),
        ],
        axis=-2,
    )


def _stored_hints(pictures, change: Mapping, coordinates, side):
    """Hints of 8-bit pictures (B, 3S, S, 3), see `hints.to_picture`."""
    values = _warped(from_picture(pictures), coordinates, side)
    return unpack_hints(values, lambda normals: augment.turn_normals(normals, change))
