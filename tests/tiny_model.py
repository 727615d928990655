"""Fixtures of the whole package: a model folder like the shipped one, but tiny and untrained, and a
photo. tests/conftest.py gives them to every test.
"""

import dataclasses
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import pytest

from caphuman_jax.config import MINI
from caphuman_jax.io.images import read_photo
from caphuman_jax.models import registry
from caphuman_jax.pipeline import loading
from caphuman_jax.weights import model_folder

TINY = dataclasses.replace(
    MINI,
    name="tiny",
    image_size=64,
    unet=dataclasses.replace(
        MINI.unet,
        channels=16,
        channel_multipliers=(1, 2),
        attention_resolutions=(1, 2),
        heads=2,
        cross_attention_dim=32,
        groups=8,
    ),
    capface=dataclasses.replace(MINI.capface, hint_widths=(8, 8, 16)),
    vae=dataclasses.replace(
        MINI.vae, encoder_channels=8, decoder_channels=8, channel_multipliers=(1, 2), groups=8
    ),
    text=dataclasses.replace(MINI.text, width=32, layers=1, heads=2, mlp_width=64, embed_width=8),
    # Guidance of the prompt alone: two predictions a step, as CapHuman's own.
    sampling=dataclasses.replace(MINI.sampling, steps=2, guidance_scale=3.0, head_guidance=1.0),
)


def make_params() -> dict:
    """{network: parameters} drawn at random, save CapFace's last layers, which are zero as when
    training begins.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key == "scale", np.float32)

    shapes = {name: params for name, (_, params) in registry.abstract(TINY).items()}
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    params["capface"]["zero"] = jax.tree.map(np.zeros_like, params["capface"]["zero"])
    return params


def write_folder(path: Path, params: dict) -> None:
    """A model folder whose CapFace is not zero, so that faces and heads matter."""
    rng = np.random.default_rng(1)
    stirred = jax.tree.map(
        lambda p: p + rng.normal(0, 0.1, p.shape).astype(np.float32), params["capface"]
    )
    model_folder.save_model(path, TINY, {**params, "capface": stirred})


@pytest.fixture(scope="session")
def tiny_params():
    return make_params()


@pytest.fixture(scope="session")
def tiny_folder(tiny_params, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, tiny_params)
    return path


@pytest.fixture(scope="session")
def pipe(tiny_folder):
    return loading.load(tiny_folder)


@pytest.fixture(scope="session")
def astronaut_file():
    return files("caphuman_jax") / "assets" / "astronaut_nasa.png"


@pytest.fixture(scope="session")
def astronaut(astronaut_file):
    picture = read_photo(astronaut_file)
    picture.flags.writeable = False
    return picture


@pytest.fixture(scope="session")
def two_faces(astronaut):
    """A large and a small face side by side."""
    small = np.full((512, 256, 3), 200, np.uint8)
    small[100:356] = astronaut[::2, ::2]
    return np.concatenate([small, astronaut], axis=1)


@pytest.fixture(scope="session")
def person(pipe, astronaut_file):
    return pipe.person(astronaut_file)
