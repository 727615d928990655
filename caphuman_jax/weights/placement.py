"""How a model's weights lie in memory, from as stored to as small as they go, and what else gives
way with them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax.models.registry import OPTIONAL
from caphuman_jax.nn import quantization
from caphuman_jax.runtime import compiler

MEMORY = {
    "full": "weights in float32, as they are stored",
    "normal": "weights in the compute dtype: the same pictures, in bfloat16 half the memory (the "
    "default)",
    "low": "the networks that look at photos stay in the computer's memory, one picture at a time, "
    "decoded in tiles of 512 pixels",
    "least": "the same, and the kernels of the UNet, CapFace and the ControlNets as 8-bit numbers: "
    "half of bfloat16, with an error of its own",
}
"""Names of the settings, with a line each on what they do."""

TILES = {"full": 1024, "normal": 1024, "low": 512, "least": 512}
"""Side in pixels from which on pictures are decoded in tiles of that side."""


def packed(name: str, params: dict, dtype, memory: str) -> dict[str, Any]:
    """A network's parameters (float32, on the host) as they are kept; still on the host."""
    if memory == "full" or name in OPTIONAL:
        return params
    if memory == "least" and name.startswith(("unet", "capface", "controlnet_")):
        return quantization.in_int8(params, dtype)
    return params if dtype == jnp.float32 else quantization.in_dtype(params, dtype)


def put(name: str, params: dict, memory: str) -> dict[str, Any]:
    """On the first device; but networks that look at photos, where memory is short, only when they
    are used.
    """
    return params if _waits(name, memory) else compiler.laid_out(jax.device_put(params))


def put_stored(name: str, stored: dict[str, Any], dtype, memory: str) -> dict[str, Any]:
    """What `put` makes of `packed` parameters, from those in the types that they are stored in
    (arrays on the host): the same numbers, converted by the device; NumPy takes seconds for it at
    Stable Diffusion's size. Not for 8-bit kernels.
    """
    if _waits(name, memory):
        whole = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
        return packed(name, whole, dtype, memory)
    kept = jnp.float32 if memory == "full" or name in OPTIONAL else dtype
    wanted = jax.tree.map(
        lambda x, kind: jax.ShapeDtypeStruct(x.shape, kind),
        stored,
        quantization.dtypes(stored, kept),
    )
    there = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = compiler.formats(wanted, jax.tree.map(lambda _: there, wanted))
    convert = jax.jit(
        lambda tree: jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), tree, wanted),
        out_shardings=places,
    )
    return convert(jax.device_put(stored, there))


def _waits(name: str, memory: str) -> bool:
    return memory in ("low", "least") and (name == "image_encoder" or name in OPTIONAL)
