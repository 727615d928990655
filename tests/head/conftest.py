"""Synthetic heads with known numbers, shared by this room's tests."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.head import camera, pose
from caphuman_jax.head.head import Head
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.head.spherical_harmonics import WHITE

PARITY = pathlib.Path(
    os.environ.get("CAPHUMAN_PARITY", pathlib.Path(__file__).parents[1] / "parity" / "data")
)


@pytest.fixture(scope="module")
def data():
    """The synthetic head in FLAME's form, and what the original code makes of it."""
    return dict(np.load(PARITY / "head.npz"))


@pytest.fixture(scope="session")
def relative():
    """max|a − b| / max|b|."""
    return lambda a, b: np.abs(np.asarray(a) - b).max() / np.abs(b).max()


@pytest.fixture(scope="session")
def model():
    return load_head("anny")


@pytest.fixture(scope="session")
def make_head(model):
    """A head of random identity in a picture of 200 × 160 pixels."""

    def make(
        seed=0,
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        expression=None,
        light=None,
        scale=60.0,
        translation=(80.0, 105.0),
    ):
        rng = np.random.default_rng(seed)
        weights = np.zeros(len(model.expression_names), np.float32)
        for name, weight in (expression or {}).items():
            weights[model.expression_names.index(name)] = weight
        albedo = 0.3 + 0.4 * rng.random((len(model.mean), 3), dtype=np.float32)
        return Head(
            identity=jnp.asarray(rng.standard_normal(len(model.identity_basis)) * 0.7, jnp.float32),
            expression=jnp.asarray(weights),
            rotation=pose.rotation_matrix(yaw, pitch, roll),
            scale=jnp.float32(scale),
            translation=jnp.asarray(translation, jnp.float32),
            size=jnp.asarray([200, 160], jnp.float32),
            light=jnp.asarray(WHITE if light is None else light),
            albedo=jnp.asarray(albedo),
            residual=jnp.float32(0),
        )

    return make


@pytest.fixture(scope="session")
def landmarks_of(model):
    """Landmarks (478,3) in pixels of a head."""

    def project(head):
        points = model.landmarks(model.vertices(head.identity, head.expression))
        return np.asarray(camera.project(points, head.rotation, head.scale, head.translation))

    return project
