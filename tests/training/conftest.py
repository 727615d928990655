"""A model and data small enough to train on in seconds."""

import dataclasses

import jax
import numpy as np
import pytest

from caphuman_jax.config import (
    MINI,
    CapFaceConfig,
    IdentityConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from caphuman_jax.training.recipes.mini import MiniTraining
from data_pipeline.loading import augment


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """Strict as everywhere, but for runs of a whole step: the gradient of JAX's own attention mixes
    dtypes in bfloat16.
    """
    whole_step = request.module.__name__.rpartition(".")[2] in (
        "test_autoencoder",
        "test_mini_step",
        "test_mini",
    )
    with jax.numpy_dtype_promotion("standard" if whole_step else "strict"):
        yield


@pytest.fixture(scope="session")
def tiny():
    """A ModelConfig with 32-pixel pictures and 8² latents."""
    return dataclasses.replace(
        MINI,
        image_size=32,
        unet=UNetConfig(
            in_channels=3,
            out_channels=3,
            channels=16,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(2,),
            heads=2,
            cross_attention_dim=16,
            groups=8,
        ),
        capface=CapFaceConfig(hint_widths=(8, 8, 16)),
        identity=IdentityConfig(8, 12, "mobilefacenet", "recognizer"),
        vae=VAEConfig(
            patch=2,
            encoder_channels=8,
            decoder_channels=8,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            latent_channels=3,
            groups=4,
            scaling_factor=1.0,
        ),
        text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, embed_width=4, vocabulary=100),
    )


@pytest.fixture(scope="session")
def training():
    """A few steps of 8 pictures: enough for the mask to open and CapFace to learn behind it."""
    return MiniTraining(
        steps=16,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=1,
        augment=augment.AugmentConfig(roll_degrees=5.0),
    )


@pytest.fixture(scope="session")
def data():
    """What `dataset.build` returns, for 10 random photos of 44 pixels."""
    rng = np.random.default_rng(0)
    n, size = 10, 44
    return {
        "pictures": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "covered": np.tile(np.array([0, 0, size, size], np.float32), (n, 1)),
        "region": np.where(rng.random((n, size, size)) < 0.5, 255, 0).astype(np.uint8),
        "hints": rng.integers(0, 256, (n, 2, size, size, 9), np.uint8),
        "tokens": rng.standard_normal((n, 4, 5, 12)).astype(np.float16),
        "vectors": rng.standard_normal((n, 4, 8)).astype(np.float32),
        "partner": np.tile(np.arange(n, dtype=np.int32)[:, None], (1, 4)),
        "captions": rng.integers(0, 100, (n, 3, 5, 77)).astype(np.int32),
        "grey": np.arange(n) % 3 == 0,
        "empty": np.full(77, 99, np.int32),
        "features": np.where(rng.random((n, size, size)) < 0.2, 255, 0).astype(np.uint8),
        "person": np.zeros((n, size, size), np.uint8),
        "clothes": np.zeros((n, size, size), np.uint8),
        "clothes_brightness": np.full(n, 0.4, np.float32),
        "clothes_ids": np.array([[8, 9, 99, 99], [8, 10, 99, 99]], np.int32),
        "trained": {},
        "rarity": np.where(np.arange(n) == 4, 5.0, 0.5).astype(np.float32),
        "background_ids": np.array(
            [[[5, 6, 99, 99], [6, 99, 99, 99]], [[5, 7, 99, 99], [7, 99, 99, 99]]], np.int32
        ),
        "background_rgb": np.array([[[0.8, 0.1, 0.1]] * 3, [[0.1, 0.1, 0.8]] * 3], np.float32),
    }


@pytest.fixture(scope="session")
def vae_params(tiny):
    """Random frozen weights of the tiny autoencoder."""
    from caphuman_jax.models import registry

    return jax.device_get(registry.init(tiny, jax.random.key(5))["vae"][1])
