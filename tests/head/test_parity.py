"""Normals, projection, rasterizer, shading and hints of a head in FLAME's form, against DECA's
renderer in PyTorch.

The folder that CAPHUMAN_PARITY names (default: the repository's own) holds the numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.head.rasterizer import interpolate, rasterize
from caphuman_jax.head.spherical_harmonics import shading
from caphuman_jax.head.topology import incident_triangles, vertex_normals


@pytest.fixture(scope="module")
def drawn(data):
    """Triangles and weights of the projected heads, by our convention: pixels, y down, pixel
    centers at + 0.5.
    """
    size = data["alpha_image"].shape[-1]
    pixels = data["projected"] * np.float32(size / 2)
    pixels[..., :2] += np.float32(size / 2)
    return rasterize(jnp.asarray(pixels), jnp.asarray(data["faces"], dtype=jnp.int32), size, size)


def test_projection(data, relative):
    """DECA: (x, y, z) · scale after the shift, then y and z turned over."""
    cam = data["cam"][:, None]
    shifted = data["vertices"] + np.concatenate(
        [cam[..., 1:], np.zeros_like(cam[..., :1])], axis=-1
    )
    assert relative(shifted * cam[..., :1] * [1, -1, -1], data["projected"]) < 1e-5


def test_vertex_normals(data, relative):
    faces = data["faces"].astype(np.int32)
    table = incident_triangles(faces, data["vertices"].shape[1])
    normals = jax.vmap(lambda v: vertex_normals(v, jnp.asarray(faces), jnp.asarray(table)))(
        jnp.asarray(data["vertices"])
    )
    assert relative(normals, data["vertex_normals"]) < 1e-5


def edge_distance(data, size):
    """Per picture, how far (in [-1,1] units) each pixel's center is from the nearest edge of any
    triangle.
    """
    center = (2 * np.arange(size) + 1) / size - 1
    grid = np.stack(np.meshgrid(center, center), -1).reshape(-1, 1, 2)
    result = []
    for points in data["projected"][..., :2]:
        edges = np.unique(
            np.sort(
                np.concatenate([data["faces"][:, p] for p in ((0, 1), (1, 2), (2, 0))]), axis=1
            ),
            axis=0,
        )
        a, b = points[edges[:, 0]], points[edges[:, 1]]
        along = np.clip(
            ((grid - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-12), 0, 1
        )
        result.append(
            np.linalg.norm(grid - a - along[..., None] * (b - a), axis=-1)
            .min(axis=1)
            .reshape(size, size)
        )
    return np.stack(result)


def test_nearest_triangle_and_alpha(data, drawn):
    ids = np.asarray(drawn[0])
    clear = edge_distance(data, ids.shape[-1]) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ids[clear], data["pixel_to_face"][clear])
    np.testing.assert_array_equal((ids >= 0)[clear], data["alpha_image"][:, 0][clear] > 0)


def test_normal_and_shading_images(data, drawn):
    faces = jnp.asarray(data["faces"], dtype=jnp.int32)
    ids, weights = drawn
    normal = jax.vmap(lambda n, i, w: interpolate(n, faces, i, w))(
        jnp.asarray(data["vertex_normals"]), ids, weights
    )
    lit = jax.vmap(shading)(normal, jnp.asarray(data["light"]))
    same = np.asarray(ids) == data["pixel_to_face"]
    covered = same & (np.asarray(ids) >= 0)
    assert same.mean() > 0.99
    expected = np.moveaxis(data["normal_image"], 1, -1)
    assert (
        np.abs(np.asarray(normal)[covered] - expected[covered]).max() / np.abs(expected).max()
        < 1e-4
    )
    expected = np.moveaxis(data["shading_image"], 1, -1)
    assert (
        np.abs(np.asarray(lit)[covered] - expected[covered]).max() / np.abs(expected).max() < 1e-4
    )
    rendered, albedo = (
        np.moveaxis(data[name], 1, -1) for name in ("rendered_image", "albedo_image")
    )
    assert (
        np.abs((np.asarray(lit) * albedo - rendered)[covered]).max() / np.abs(rendered).max() < 1e-4
    )
