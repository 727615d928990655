"""CapHuman on Stable Diffusion 1.5 as the original trains it: CapFace and the identity projector, the base frozen."""

import dataclasses

import ml_collections

from caphuman_jax.config import SD15
from caphuman_jax.training.control import ControlTraining
from caphuman_jax.training.loop import LoopConfig


def get_config() -> ml_collections.ConfigDict:
    """Base weights (`--config.base=FOLDER`), records (`--config.data=DIR`), what is trained and how; `model` is the base's where one is given."""
    return ml_collections.ConfigDict({
        "recipe": "sd15",
        "base": "",
        "data": "",
        "model": SD15.to_dict(),
        "training": dataclasses.asdict(ControlTraining()),
        "loop": dataclasses.asdict(LoopConfig()),
    })
