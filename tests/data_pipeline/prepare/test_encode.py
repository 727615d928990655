"""Encodings are the networks' own, of a tiny model folder."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.config import MINI, CapFaceConfig, ImageEncoderConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import registry
from caphuman_jax.models.clip_image import MEAN, STD
from caphuman_jax.weights import model_folder
from data_pipeline.prepare.encode import Encoder
from data_pipeline.prepare.settings import PrepareSettings

CONFIG = dataclasses.replace(
    MINI,
    name="tiny",
    image_size=32,
    image_encoder=ImageEncoderConfig(
        image_size=28, patch=14, width=16, layers=1, heads=2, mlp_width=16
    ),
    unet=dataclasses.replace(MINI.unet, cross_attention_dim=16),
    capface=CapFaceConfig(hint_widths=(16, 32, 64)),
    vae=dataclasses.replace(
        MINI.vae, encoder_channels=8, decoder_channels=8, channel_multipliers=(1, 2), groups=4
    ),
    text=dataclasses.replace(MINI.text, width=16, layers=1, heads=2, mlp_width=16, embed_width=4),
    identity=dataclasses.replace(MINI.identity, image_tokens="clip", image_width=16),
)
NETWORKS = ("vae", "text", "image_encoder")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Path and networks of a model folder."""
    networks = registry.init(CONFIG, jax.random.key(0), only=NETWORKS)
    path = tmp_path_factory.mktemp("models") / "tiny"
    model_folder.save_model(path, CONFIG, {name: params for name, (_, params) in networks.items()})
    return path, networks


def settings(path, encode):
    return PrepareSettings(size=32, margin=1.5, model=str(path), encode=encode, captions=2)


def test_each_is_what_the_network_says_of_one_alone(tiny):
    path, networks = tiny
    rng = np.random.default_rng(0)
    squares, pictures = (rng.integers(0, 256, (3, side, side, 3), np.uint8) for side in (32, 28))
    ids = rng.integers(0, 49000, (3, 2, 77)).astype(np.int32)
    given = settings(path, ("moments", "text", "image_tokens"))
    found = Encoder(given)(squares, ids, pictures)
    layout = given.layout()
    assert found["moments"].shape == (3, 2, *layout.moments) and found["image_tokens"].shape == (
        3,
        *layout.image_tokens,
    )
    assert found["text"].shape == (3, 2, 77, layout.text) and all(
        array.dtype == np.float16 for array in found.values()
    )

    alone = lambda name, call, x: jax.jit(
        lambda params, x: call(nnx.merge(networks[name][0], params), x)
    )(networks[name][1], x)
    both = np.stack([squares[2], squares[2][:, ::-1]]) / np.float32(127.5) - 1
    mean, spread = alone("vae", lambda network, x: network.encode(x), both)
    np.testing.assert_allclose(found["moments"][2], np.concatenate([mean, spread], -1), atol=2e-3)
    np.testing.assert_allclose(
        found["text"][1], alone("text", lambda network, x: network(x)[0], ids[1]), atol=4e-3
    )
    tokens = alone(
        "image_encoder",
        lambda network, x: network(x)[0],
        (pictures[:1] / np.float32(255) - MEAN) / STD,
    )
    np.testing.assert_allclose(found["image_tokens"][0], tokens[0], atol=4e-3)
    one = Encoder(given)(squares[1:2], ids[1:2], pictures[1:2])
    assert all(
        np.array_equal(one[name][0], found[name][1]) for name in found
    )  # whatever is in the same batch


def test_only_what_is_asked_for_is_loaded(tiny, tmp_path):
    path, _ = tiny
    encoder = Encoder(settings(path, ("text",)))
    assert set(encoder.networks) == {"text"}
    (path / "vae.safetensors").rename(tmp_path / "vae.safetensors")
    Encoder(settings(path, ("text",)))
    with pytest.raises(ModelFolderError, match="vae.safetensors is missing"):
        Encoder(settings(path, ("moments",)))
    (tmp_path / "vae.safetensors").rename(path / "vae.safetensors")
