"""Rasterizer in plain JAX: triangles of a batch of meshes → the nearest triangle and barycentrics
at every pixel. No gradient.

Work is cut into items of one triangle × one picture row × `SEGMENT` pixels, for the whole batch in
one list, so that many small and a few huge triangles cost what they cover. Items are handled in
chunks by a `while_loop`, which makes the memory fixed and every picture size and triangle size
exact: there is nothing that can overflow. Each item's pixels fight for their place through one
scatter-min of a 32-bit key, depth in the high bits and triangle number in the low ones; the outcome
does not depend on the order of the updates, so the result is the same on every machine and every
run."""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from caphuman_jax.errors import HeadError
from caphuman_jax.nn.typing import Array

SEGMENT = 4
_EMPTY = np.uint32(0xFFFFFFFF)
# A pixel whose center lies on an edge within rounding belongs to both triangles, so that no crack
# opens between them.
_EDGE = 1e-5


@functools.partial(jax.jit, static_argnames=("height", "width", "cull_backfaces", "chunk"))
def rasterize(
    vertices_px: Float[Array, "b v 3"],
    triangles: Int[Array, "t 3"],
    height: int,
    width: int,
    *,
    cull_backfaces: bool = False,
    chunk: int | None = None,
) -> tuple[Int[Array, "b {height} {width}"], Float[Array, "b {height} {width} 3"]]:
    """Nearest triangle per pixel of a batch of meshes.

    vertices_px (B,V,3) float32: x to the right and y down in pixels, the center of pixel (row r,
    column c) at (c + 0.5, r + 0.5); smaller z is nearer, in any unit. triangles (T,3) int32, T <
    65,536. Returns triangle numbers (B,H,W) int32, -1 where there is none, and barycentric weights
    (B,H,W,3) float32 (0 there). Depth is compared in steps of the mesh's depth range / 2^(32 - bits
    of T) (for T = 9,462: 2^18 steps); within a step the lower triangle number wins. With
    `cull_backfaces`, triangles that are clockwise in the picture are left out. Triangles with a
    corner that is not finite are left out. `chunk` items are handled at once (speed only; by
    default few on a CPU, many on an accelerator)."""
    batch, count = vertices_px.shape[0], triangles.shape[0]
    if chunk is None:
        chunk = 1 << 14 if jax.default_backend() == "cpu" else 1 << 20
    if count >= 1 << 16:
        raise HeadError(
            f"the rasterizer handles fewer than 65,536 triangles, the mesh has {count:,}"
        )
    id_bits = max(int(count - 1).bit_length(), 1)
    planes, first, rows, segments = _set_up(
        vertices_px, triangles, height, width, cull_backfaces, 32 - id_bits
    )
    sizes = (rows * segments).reshape(-1)
    ends = jnp.cumsum(sizes)
    total = ends[-1]
    stride = width + SEGMENT
    planes, first, segments = (
        planes.reshape(batch * count, -1),
        first.reshape(batch * count, 2),
        segments.reshape(-1),
    )
    column = jnp.arange(SEGMENT, dtype=jnp.int32)

    def draw(state):
        begin, keys = state
        item = begin + jnp.arange(chunk, dtype=jnp.int32)
        owner = jnp.minimum(
            jnp.searchsorted(ends, item, side="right", method="scan").astype(jnp.int32),
            batch * count - 1,
        )
        local = item - (ends[owner] - sizes[owner])
        across = jnp.maximum(segments[owner], 1)
        row = first[owner, 1] + local // across
        left = first[owner, 0] + (local % across) * SEGMENT
        b1x, b1y, b2x, b2y, dzx, dzy, x0, y0, z0 = (planes[owner, i][:, None] for i in range(9))
        columns = left[:, None] + column[None]
        dx = columns.astype(jnp.float32) + 0.5 - x0
        dy = row[:, None].astype(jnp.float32) + 0.5 - y0
        b1, b2 = b1x * dx + b1y * dy, b2x * dx + b2y * dy
        inside = (b1 >= -_EDGE) & (b2 >= -_EDGE) & (b1 + b2 <= 1 + _EDGE)
        steps = np.float32((1 << (32 - id_bits)) - 1024)
        depth = jnp.clip(z0 + dzx * dx + dzy * dy, 0, steps).astype(jnp.uint32)
        key = (depth << id_bits) | (owner % count).astype(jnp.uint32)[:, None]
        inside &= (columns < width) & (item < total)[:, None]
        place = ((owner // count) * height + row) * stride + left
        keys = jax.lax.scatter_min(
            keys,
            place[:, None],
            jnp.where(inside, key, _EMPTY),
            jax.lax.ScatterDimensionNumbers(
                update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
            ),
            mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        )
        return begin + chunk, keys

    # Empty, whatever `total` is: its part in this makes every device of a shard_map render its
    # own.
    keys = jnp.broadcast_to(_EMPTY | total.astype(jnp.uint32), batch * height * stride)
    _, keys = jax.lax.while_loop(lambda state: state[0] < total, draw, (jnp.int32(0), keys))
    keys = keys.reshape(batch, height, stride)[:, :, :width]
    hit = keys != _EMPTY
    ids = jnp.where(hit, (keys & np.uint32((1 << id_bits) - 1)).astype(jnp.int32), -1)

    owner = jnp.maximum(ids, 0) + count * jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    plane = planes[owner]
    dx = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None, None] - plane[..., 6]
    dy = (jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5)[None] - plane[..., 7]
    b1, b2 = plane[..., 0] * dx + plane[..., 1] * dy, plane[..., 2] * dx + plane[..., 3] * dy
    weights = jnp.clip(jnp.stack([1 - b1 - b2, b1, b2], axis=-1), 0, 1)
    return ids, jnp.where(hit[..., None], weights, 0)


def _set_up(points, triangles, height, width, cull_backfaces, depth_bits):
    """Per triangle: the plane equations of two barycentrics and of the quantized depth about its
    first corner, and the
    pixel box: first (x, y), number of rows, number of segments a row (0 rows: nothing to draw).
    """
    z = points[..., 2]
    near = jnp.min(jnp.where(jnp.isfinite(z), z, jnp.inf), axis=1, keepdims=True)
    far = jnp.max(jnp.where(jnp.isfinite(z), z, -jnp.inf), axis=1, keepdims=True)
    z = (z - near) * (np.float32((1 << depth_bits) - 1024) / jnp.maximum(far - near, 1e-20))
    xy = points[..., :2][:, triangles]
    z = z[:, triangles]
    low, high = jnp.min(xy, axis=2), jnp.max(xy, axis=2)
    limit = jnp.asarray([width, height], jnp.float32)[None, None]
    # Pixel centers in [low, high]: columns ceil(low - 0.5) … floor(high - 0.5).
    first = jnp.clip(jnp.ceil(low - 0.5 - 1e-3), 0, limit)
    last = jnp.clip(jnp.floor(high - 0.5 + 1e-3), -1, limit - 1)
    extent = jnp.maximum(last - first + 1, 0)
    edge1, edge2 = xy[:, :, 1] - xy[:, :, 0], xy[:, :, 2] - xy[:, :, 0]
    area = edge1[..., 0] * edge2[..., 1] - edge1[..., 1] * edge2[..., 0]
    finite = jnp.all(jnp.isfinite(xy), axis=(2, 3)) & jnp.all(jnp.isfinite(z), axis=2)
    # Counter-clockwise with y up is clockwise with y down: a triangle that faces the viewer has a
    # negative area here.
    drawn = (
        finite
        & (extent[..., 0] > 0)
        & (extent[..., 1] > 0)
        & ((area < 0) if cull_backfaces else (area != 0))
    )
    inverse = 1 / jnp.where(area == 0, 1, area)
    b1 = jnp.stack([edge2[..., 1], -edge2[..., 0]], axis=-1) * inverse[..., None]
    b2 = jnp.stack([-edge1[..., 1], edge1[..., 0]], axis=-1) * inverse[..., None]
    slope = b1 * (z[..., 1] - z[..., 0])[..., None] + b2 * (z[..., 2] - z[..., 0])[..., None]
    planes = jnp.concatenate([b1, b2, slope, xy[:, :, 0], z[..., :1]], axis=-1)
    planes = jnp.where(drawn[..., None], planes, 0)
    first = jnp.where(drawn[..., None], first, 0).astype(jnp.int32)
    extent = jnp.where(drawn[..., None], extent, 0).astype(jnp.int32)
    return planes, first, extent[..., 1], (extent[..., 0] + SEGMENT - 1) // SEGMENT


def interpolate(
    values: Float[Array, "v c"],
    triangles: Int[Array, "t 3"],
    ids: Int[Array, "h w"],
    weights: Float[Array, "h w 3"],
) -> Float[Array, "h w c"]:
    """Vertex values (V,C) of one mesh at pixels: ids (H,W), barycentric weights (H,W,3) → (H,W,C),
    0 where ids is -1.
    """
    corners = jnp.asarray(triangles)[jnp.maximum(ids, 0)]
    parts = [values[corners[..., i]] * weights[..., i : i + 1] for i in range(3)]
    return cast(Array, sum(parts))
