"""CapHuman on Stable Diffusion 1.5 as the original trains it: CapFace and the identity projector,
the base frozen.
"""

import dataclasses

import ml_collections

from caphuman_jax.config import SD15
from caphuman_jax.training.control import ControlTraining
from caphuman_jax.training.loop import LoopConfig
from data_pipeline.loading.augment_sampling import MIDDLE


def get_config() -> ml_collections.ConfigDict:
    """Base weights (`--config.base=FOLDER`), records (`--config.data=DIR`), what is trained and
    how; `model` is the base's where one is given.

    Nothing is changed, lent or dropped unless asked for, as in the original; docs/training.md says
    what is worth it."""
    return ml_collections.ConfigDict(
        {
            "recipe": "sd15",
            "base": "",
            "data": "",
            "model": SD15.to_dict(),
            "loader": "auto",  # or tf, grain
            "hints": "head",  # rendered on the accelerator; "pictures": those that are stored
            # moments where they are stored; "pictures" encodes them on the fly, and allows augment
            # and light
            "latents": "",
            "augment": dataclasses.asdict(MIDDLE),
            "light": 1.0,
            "lent_identity": 0.0,  # share whose face is that of another photo of the person
            "held_out": 256,  # pictures of the split "test" whose error is the evaluation
            "training": dataclasses.asdict(ControlTraining()),
            "loop": dataclasses.asdict(LoopConfig()),
        }
    )
