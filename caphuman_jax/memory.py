"""How a model's weights lie in memory, from as stored to as small as they go, and what else gives way with them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax import compiler
from caphuman_jax.models import OPTIONAL
from caphuman_jax.nn import compact

MEMORY = {
    "full": "weights in float32, as they are stored",
    "normal": "weights in the compute dtype: the same pictures, in bfloat16 half the memory (the default)",
    "low": "the networks that look at photos stay in the computer's memory, one picture at a time, decoded in tiles of 512 pixels",
    "least": "the same, and the kernels of the UNet, CapFace and the ControlNets as 8-bit numbers: half of bfloat16, with an error of its own",
}
"""Names of the settings, with a line each on what they do."""

TILES = {"full": 1024, "normal": 1024, "low": 512, "least": 512}
"""Side in pixels from which on pictures are decoded in tiles of that side."""


def packed(name: str, params: dict, dtype, memory: str) -> dict[str, Any]:
    """A network's parameters (float32, on the host) as they are kept; still on the host."""
    if memory == "full" or name in OPTIONAL:
        return params
    if memory == "least" and name.startswith(("unet", "capface", "controlnet_")):
        return compact.in_int8(params, dtype)
    return params if dtype == jnp.float32 else compact.in_dtype(params, dtype)


def put(name: str, params: dict, memory: str) -> dict[str, Any]:
    """On the first device; but networks that look at photos, where memory is short, only when they are used."""
    waits = memory in ("low", "least") and (name == "image_encoder" or name in OPTIONAL)
    return params if waits else compiler.laid_out(jax.device_put(params))
