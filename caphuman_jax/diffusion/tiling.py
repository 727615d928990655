"""Large pictures decoded in overlapping tiles, one after the other, so that memory does not grow
with the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from caphuman_jax.nn.typing import Array

OVERLAP = 0.25
"""Share of a tile's side that it has in common with the next, at least."""


def decode_in_tiles(
    decode: Callable[[Array], Array],
    latents: Float[Array, "b h w c"],
    tile: int,
    factor: int,
) -> Float[Array, "b {factor}*h {factor}*w 3"]:
    """`decode` (latents (B, h, w, C) → pictures (B, factor·h, factor·w, 3)) on tiles of at most
    tile² latents, faded into each other.

    The autoencoder's norms and its self-attention see a whole picture at once, so tiles of one
    picture differ a little from it and from each other: differences at the seams are spread over
    the overlap.
    """
    batch, *sides = latents.shape[:3]
    spans = [min(tile, side) for side in sides]
    if spans == sides:
        return decode(latents)
    starts = [_starts(side, span) for side, span in zip(sides, spans)]
    places = jnp.asarray([(y, x) for y in starts[0] for x in starts[1]], jnp.int32)
    fade = jnp.asarray(
        np.outer(*(_fade(span, side, factor) for span, side in zip(spans, sides)))[
            None, :, :, None
        ],
        jnp.float32,
    )

    def add(sums, place):
        y, x = place
        part = decode(
            jax.lax.dynamic_slice(latents, (0, y, x, 0), (batch, *spans, latents.shape[3]))
        )
        return tuple(
            _added_at(total, more, (0, y * factor, x * factor, 0))
            for total, more in zip(sums, (part * fade, fade))
        ), None

    height, width = (side * factor for side in sides)
    (pictures, weights), _ = jax.lax.scan(
        add, (jnp.zeros((batch, height, width, 3)), jnp.zeros((1, height, width, 1))), places
    )
    return pictures / weights


def _starts(side: int, span: int) -> list[int]:
    """First latents of tiles that cover a side evenly."""
    count = 1 if side == span else -(-(side - span) // max(1, int(span * (1 - OVERLAP)))) + 1
    return [round(i * (side - span) / max(count - 1, 1)) for i in range(count)]


def _fade(span: int, side: int, factor: int) -> np.ndarray:
    """Weights of a tile's pixels along one side, less towards its ends; never zero."""
    if span == side:
        return np.ones(span * factor)
    ramp = np.minimum(
        np.arange(span * factor) + 0.5, span * factor - 0.5 - np.arange(span * factor)
    )
    return np.minimum(1.0, ramp / (OVERLAP * span * factor))


def _added_at(total: Array, more: Array, place) -> jax.Array:
    there = jax.lax.dynamic_slice(total, place, more.shape)
    return jax.lax.dynamic_update_slice(total, there + more, place)
