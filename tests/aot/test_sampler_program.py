"""Programs for several devices from one process: each is that of its own target."""

import dataclasses

import jax
import pytest

from caphuman_jax.aot.compile import Target
from caphuman_jax.aot.sampler_program import sampler
from caphuman_jax.config import (
    MINI,
    CapFaceConfig,
    IdentityConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)

TINY = dataclasses.replace(
    MINI,
    name="tiny",
    image_size=64,  # from 4,096 positions on, a GPU sums in two stages
    image_encoder=None,
    capface=CapFaceConfig(hint_widths=(8,)),
    identity=IdentityConfig(16, 12, "mobilefacenet", "recognizer"),
    unet=UNetConfig(
        in_channels=3,
        out_channels=3,
        channels=8,
        channel_multipliers=(1,),
        blocks_per_level=1,
        attention_resolutions=(1,),
        heads=1,
        cross_attention_dim=16,
        groups=4,
    ),
    vae=VAEConfig(
        patch=1,
        encoder_channels=4,
        decoder_channels=4,
        channel_multipliers=(1,),
        blocks_per_level=1,
        latent_channels=3,
        groups=4,
        scaling_factor=1.0,
    ),
    text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, embed_width=4, vocabulary=100),
)


def barriers(platform: str) -> int:
    """In the program for one device of the platform; those are put there for GPUs alone."""
    device = jax.devices()[0]
    target = Target(platform, (device,), platform, device.device_kind)
    lower, *_ = sampler(TINY, target, batch=1, steps=2, attention="xla")
    return lower().as_text().count("optimization_barrier")


@pytest.fixture(autouse=True)
def from_nothing():
    jax.clear_caches()


def test_each_of_two_targets_gets_its_own_program():
    assert barriers("tpu") == 0
    assert barriers("gpu") > 0
    assert barriers("tpu") == 0


def test_a_gpus_program_first_leaves_that_of_a_tpu_alone():
    assert barriers("gpu") > 0
    assert barriers("tpu") == 0
