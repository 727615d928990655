"""The small model that ships with the package: trained from nothing, autoencoder first."""

import dataclasses

import ml_collections

from caphuman_jax.config import MINI
from caphuman_jax.training.diffusion import DiffusionTraining
from caphuman_jax.training.loop import LoopConfig
from caphuman_jax.training.recipes.autoencoder import AutoencoderTraining


def get_config() -> ml_collections.ConfigDict:
    """Model, both stages of training, the loop and the records to train on (`--config.data=DIR`)."""
    return ml_collections.ConfigDict(
        {
            "recipe": "mini",
            "data": "",
            "model": MINI.to_dict(),
            "autoencoder": dataclasses.asdict(AutoencoderTraining(steps=2000, batch=192)),
            "training": dataclasses.asdict(
                DiffusionTraining(steps=6000, batch=512, learning_rate=8e-4, warmup=300)
            ),
            "loop": dataclasses.asdict(
                LoopConfig(evaluate_every=500, pictures_every=3000, best="loss")
            ),
        }
    )
