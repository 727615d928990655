"""The rasterizer against a brute-force loop over triangles and pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import HeadError
from caphuman_jax.head import camera, pose
from caphuman_jax.head.rasterizer import interpolate, rasterize


def brute_force(points, triangles, height, width):
    """Nearest triangle per pixel in float64, and how far (in barycentric units) the nearest edge of
    any triangle is.
    """
    ids = np.full((height, width), -1)
    depth = np.full((height, width), np.inf)
    margin = np.full((height, width), np.inf)
    second = np.full((height, width), np.inf)
    y, x = np.mgrid[:height, :width] + 0.5
    for number, triangle in enumerate(triangles):
        a, b, c = points[triangle].astype(np.float64)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        w1 = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        w2 = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        weights = np.stack([1 - w1 - w2, w1, w2])
        lowest = weights.min(axis=0)
        margin = np.where(lowest > -0.01, np.minimum(margin, np.abs(lowest)), margin)
        z = (weights * np.asarray([a[2], b[2], c[2]])[:, None, None]).sum(axis=0)
        inside = lowest >= 0
        nearer = inside & (z < depth)
        second = np.where(nearer, depth, np.where(inside, np.minimum(second, z), second))
        ids, depth = np.where(nearer, number, ids), np.where(nearer, z, depth)
    return ids, margin, second - np.where(np.isfinite(depth), depth, 0)


@pytest.mark.parametrize(
    ("height", "width", "chunk"), [(40, 40, 64), (33, 57, 1 << 14), (64, 20, 1000)]
)
def test_random_triangles_of_all_sizes(height, width, chunk):
    rng = np.random.default_rng(height)
    batch = []
    for size in (3, 60):
        center = rng.uniform(-10, 70, (150, 1, 3))
        batch.append((center + rng.normal(0, size, (150, 3, 3))).reshape(-1, 3))
    points = np.stack(batch).astype(np.float32)
    triangles = np.arange(450, dtype=np.int32).reshape(150, 3)
    ids, weights = (
        np.asarray(a)
        for a in rasterize(jnp.asarray(points), jnp.asarray(triangles), height, width, chunk=chunk)
    )
    for i in range(2):
        expected, margin, gap = brute_force(points[i], triangles, height, width)
        clear = (margin > 1e-4) & (gap > 1e-3)
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(ids[i][clear], expected[clear])
        hit = ids[i] >= 0
        np.testing.assert_allclose(weights[i][hit].sum(-1), 1, atol=1e-4)
        xy = np.asarray(
            interpolate(
                jnp.asarray(points[i]),
                jnp.asarray(triangles),
                jnp.asarray(ids[i]),
                jnp.asarray(weights[i]),
            )
        )
        y, x = np.mgrid[:height, :width] + 0.5
        np.testing.assert_allclose(xy[..., 0][hit], x[hit], atol=0.02)
        np.testing.assert_allclose(xy[..., 1][hit], y[hit], atol=0.02)
        assert not weights[i][~hit].any()


def test_head_against_brute_force_and_no_cracks(model):
    points = camera.project(
        model.mean,
        pose.rotation_matrix(25, 10, -15),
        jnp.float32(22),
        jnp.asarray([32.0, 34.0], jnp.float32),
    )
    ids = np.asarray(rasterize(points[None], jnp.asarray(model.triangles), 64, 64)[0])[0]
    expected, margin, gap = brute_force(np.asarray(points), model.triangles, 64, 64)
    clear = (margin > 1e-4) & (gap > 1e-3)
    np.testing.assert_array_equal(ids[clear], expected[clear])
    np.testing.assert_array_equal((ids >= 0)[margin > 1e-4], (expected >= 0)[margin > 1e-4])


def test_shared_edge_has_no_crack_and_backfaces_can_be_left_out():
    points = jnp.asarray(
        [[[0.5, 0.5, 1.0], [10.5, 10.5, 1.0], [0.5, 10.5, 1.0], [10.5, 0.5, 1.0]]], jnp.float32
    )
    triangles = jnp.asarray([[0, 1, 2], [0, 1, 3]], jnp.int32)
    ids, _ = rasterize(points, triangles, 12, 12)
    assert (np.asarray(ids)[0, :11, :11] >= 0).all() and (np.asarray(ids) >= 0).sum() == 121
    culled, _ = rasterize(points, triangles, 12, 12, cull_backfaces=True)
    assert set(np.unique(culled)) == {-1, 1}


def test_outside_degenerate_and_not_finite_triangles_draw_nothing():
    points = jnp.asarray(
        [
            [
                [-50, -50, 0],
                [-40, -50, 0],
                [-40, -40, 0],
                [5, 5, 0],
                [5, 5, 0],
                [np.nan, 3, 0],
                [9, 1, 0],
                [1, 9, 0],
            ]
        ],
        jnp.float32,
    )
    ids, _ = rasterize(points, jnp.asarray([[0, 1, 2], [3, 4, 3], [5, 6, 7]], jnp.int32), 10, 10)
    assert (np.asarray(ids) == -1).all()


def test_too_many_triangles():
    with pytest.raises(HeadError, match="65,536"):
        rasterize(jnp.zeros((1, 3, 3), jnp.float32), jnp.zeros((70000, 3), jnp.int32), 8, 8)
