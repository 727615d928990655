"""`sd15` for TPU slices: the optimizer split over the chips (ZeRO), eight pictures a chip on a
v5e-16; docs/compile.md has what fits where.

    caphuman train --config sd15_tpu --config.base=base --config.data=records --workdir runs/sd15
"""

import ml_collections
from caphuman_jax.configs import sd15


def get_config() -> ml_collections.ConfigDict:
    """As `sd15`, with the sharding that the ahead-of-time compiler's figures support."""
    config = sd15.get_config()
    config.loop.sharding = "zero"
    config.training.attention = "auto"  # splash from 1,024 positions on
    config.training.remat = "none"
    return config
