"""CapHuman on Stable Diffusion 1.5 as the original trains it: CapFace and the identity projector,
the base frozen, nothing augmented or dropped.

    caphuman train --config sd15 --config.base=base --config.data=records --workdir runs/sd15

docs/training.md describes a run. More about each entry is in `CapFaceTraining`
(caphuman_jax/training/recipes/sd15.py) and `LoopConfig` (caphuman_jax/training/loop.py).
"""

import ml_collections

from caphuman_jax.config import SD15


def get_config() -> ml_collections.ConfigDict:
    """The whole configuration; `base` and `data` are asked for on the command line."""
    config = ml_collections.ConfigDict()
    config.recipe = "sd15"
    config.base = ""  # model folder, by caphuman import
    config.data = ""  # records, by caphuman prepare
    config.model = SD15.to_dict()  # the base's where a base is given

    # What records give.
    config.loader = "auto"  # or "tf", "grain"
    config.hints = "head"  # rendered on the accelerator; "pictures": as they are stored
    # "": moments where they are stored; "pictures": photos are encoded in each step, which allows
    # `augment` and `light`.
    config.latents = ""
    config.augment = {
        "scale": 1.0,
        "shift": 0.0,
        "roll_degrees": 0.0,
        "roll_limit": 30.0,
        "mirror": 0.0,
    }
    config.light = 1.0  # photos are made brighter or darker by up to this factor
    config.identity_swap_prob = 0.0  # share whose face is that of another photo of the person

    config.training = {
        "steps": 100_000,
        "batch_size": 128,  # pictures per step, over all devices
        "accumulate": 1,  # micro-batches that they are split into
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "lr_schedule": "constant",  # or "cosine"
        "weight_decay": 0.01,
        "weight_decay_on": "all",  # "matrices": without norms and biases
        "b1": 0.9,
        "b2": 0.999,
        "grad_clip_norm": 0.0,  # largest norm of the gradient; 0: any
        "ema_decay": 0.0,  # of the weights' moving average; 0: none
        "min_snr_gamma": 0.0,  # limit of the min-SNR loss weights; 0: all equal
        "mask_weight": 1.0,
        # Shares of pictures: with the identity only from a random timestep down, without prompt,
        # without identity.
        "identity_dropout_prob": 0.0,
        "no_text_prob": 0.0,
        "no_identity_prob": 0.0,
        "init_from": "unet",  # "base": starts from the base's own CapFace and projector
        "unfreeze": "",  # r"up\..*cross_attention=1e-5": also trains these parts of the UNet
        "lora_rank": 0,  # above 0: also trains a LoRA of the UNet, model/lora.safetensors
        "lora_alpha": 0.0,  # 0: the rank
        "lora_targets": r"(self|cross)_attention\.(query|key|value|out)\.kernel$",
        "dtype": "auto",  # float32 on CPUs, bfloat16 elsewhere
        "remat": "none",  # recomputed to save memory: "attention", "products", "blocks"
        "attention": "auto",  # the kernel: "xla", "cudnn", "splash"
        "seed": 0,
    }
    config.evaluators = {
        "held_out": {"every": 0, "pictures": 256},  # loss on the split "test"
        "previews": {"every": 0, "people": 6},  # pictures of its people, and their numbers
    }
    config.loop = {
        "log_every": 100,  # steps between two log lines
        "save_every": 2000,  # steps between two checkpoints; the last step is always saved
        "keep": 2,  # the newest checkpoints
        "best": "",  # "held_out/loss": the best checkpoint by this metric is kept, too
        "best_highest": False,  # whether the highest value is the best
        "sharding": "replicated",  # also split: "zero": optimizer and average; "fsdp": weights, too
        "fsdp": 1,  # devices that share a copy of the weights; 0: all of a slice
        "tensorboard": True,
        "wandb": "",  # a project of Weights & Biases
        "hang_seconds": 600.0,  # a host whose step takes longer ends, so that the job restarts
    }
    return config
