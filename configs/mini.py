"""The small model that ships with the package: trained from nothing, autoencoder first.

    caphuman train --config mini --config.data=records --workdir runs/mini

The meaning of each entry is in `MiniTraining` (caphuman_jax/training/recipes/mini.py),
`AutoencoderTraining` (autoencoder.py, next to it) and `LoopConfig` (caphuman_jax/training/loop.py).
"""

import ml_collections

from caphuman_jax.config import MINI


def get_config() -> ml_collections.ConfigDict:
    """The whole configuration; `data` is asked for on the command line."""
    config = ml_collections.ConfigDict()
    config.recipe = "mini"
    config.data = ""  # records, by caphuman prepare
    config.autoencoder_from = ""  # a model whose autoencoder is taken; else one is trained
    config.weights_from = ""  # a model of these sizes to start with; else from nothing
    config.model = MINI.to_dict()

    config.autoencoder = {
        "steps": 2000,
        "batch_size": 192,
        "learning_rate": 4e-4,
        "warmup_steps": 200,
        "size": 256,
        "edge_weight": 1.0,
        "feature_weight": 0.0,
        "kl_weight": 1e-4,
        "adversarial_weight": 0.0,
        "adversarial_start_step": 2000,
        "adversarial_ramp_steps": 1000,
        "latent_noise": 0.1,
        "ema_decay": 0.999,
        "seed": 0,
        "dtype": "auto",
    }
    config.training = {
        "steps": 19000,
        "batch_size": 256,
        "learning_rate": 6e-4,
        "warmup_steps": 500,
        "weight_decay": 0.01,
        "grad_clip_norm": 1.0,
        "ema_decay": 0.9995,
        "min_snr_gamma": 5.0,
        "timestep_power": 1.0,
        "timestep_power_growth": 1.0,
        "face_weight": 2.5,
        "feature_weight": 4.0,
        "mask_weight": 1.0,
        "color_share": 0.65,
        "background_swap_prob": 0.6,
        "clothes_swap_prob": 0.4,
        "no_text_prob": 0.12,
        "no_identity_prob": 0.05,
        "no_identity_prob_without_text": 0.2,
        "identity_dropout_prob": 0.2,
        "no_control_prob": 0.05,
        "no_control_prob_without_text": 0.3,
        "identity_swap_prob": 0.5,
        "grayscale_prob": 0.08,
        "light": 1.2,
        "rare_head_weight": 0.8,
        "seed": 0,
        "dtype": "auto",  # float32 on CPUs, bfloat16 elsewhere
        "augment": {
            "scale": 1.25,
            "shift": 0.1,
            "roll_degrees": 12.0,
            "roll_limit": 30.0,
            "mirror": 0.5,
        },
    }
    config.evaluators = {
        "held_out": {"every": 1000, "pictures": 64},  # loss on other people
        "previews": {"every": 3000, "people": 8},  # pictures of other people, and their numbers
    }
    config.loop = {
        "log_every": 100,
        "save_every": 2000,
        "keep": 2,
        "best": "held_out/loss",
        "best_highest": False,
        "sharding": "replicated",
        "fsdp": 1,
        "tensorboard": True,
        "wandb": "",
        "hang_seconds": 600.0,
    }
    return config
