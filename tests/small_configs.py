"""Configurations for `caphuman train` and `compile` that are done in seconds; files of their own,
as users write them.
"""

_MODEL = """
    config.model = dataclasses.replace(
        MINI, name="tiny", image_size=64, identity=dataclasses.replace(MINI.identity),
        unet=UNetConfig(in_channels=3, out_channels=3, channels=16, channel_multipliers=(1, 2),
                        blocks_per_level=1, attention_resolutions=(2,), heads=2,
                        cross_attention_dim=16, groups=8),
        capface=CapFaceConfig(hint_widths=(8, 8, 16)),
        text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, embed_width=4),
        vae=VAEConfig(patch=2, encoder_channels=8, decoder_channels=8, channel_multipliers=(1, 2),
                      blocks_per_level=1, latent_channels=3, groups=4, scaling_factor=1.0),
    ).to_dict()
"""
_IMPORTS = """
import dataclasses

from caphuman_jax.config import MINI, CapFaceConfig, TextConfig, UNetConfig, VAEConfig
from caphuman_jax.configs import {}
"""

MINI_CONFIG = (
    _IMPORTS.format("mini")
    + """

def get_config():
    config = mini.get_config()"""
    + _MODEL
    + """
    config.autoencoder.update({"steps": 2, "batch_size": 4, "size": 32})
    config.training.update({"steps": 2, "batch_size": 4})
    config.evaluators.held_out.every = config.evaluators.previews.every = 0
    config.loop.log_every = 1
    return config
"""
)

SD15_CONFIG = (
    _IMPORTS.format("sd15")
    + """

def get_config():
    config = sd15.get_config()"""
    + _MODEL
    + """
    config.training.update({"steps": 2, "batch_size": 2})
    config.evaluators.held_out.every = config.evaluators.previews.every = 0
    config.loop.log_every = 1
    return config
"""
)

SMALLEST_CONFIG = """
import dataclasses
from caphuman_jax.config import MINI, CapFaceConfig, IdentityConfig, TextConfig, UNetConfig, VAEConfig
from caphuman_jax.configs import sd15

def get_config():
    config = sd15.get_config()
    config.model = dataclasses.replace(
        MINI, name="tiny", image_size=8, capface=CapFaceConfig(hint_widths=(8,)), identity=IdentityConfig(16, 12, "mobilefacenet", "recognizer"),
        unet=UNetConfig(in_channels=3, out_channels=3, channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_resolutions=(), heads=2, cross_attention_dim=16,
                        groups=4),
        vae=VAEConfig(patch=1, encoder_channels=4, decoder_channels=4, channel_multipliers=(1,), blocks_per_level=1, latent_channels=3, groups=4, scaling_factor=1.0),
        text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, embed_width=4, vocabulary=100)).to_dict()
    config.loop.sharding = "zero"
    return config
"""  # noqa: E501
"""For compilers that are slow: as few layers as possible."""
