"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the frozen UNet: two narrow matrices a layer, whose
product is added to its weight.

The sum W + alpha / rank · down · up is computed again in every step, so the networks know nothing
of it, and a trained LoRA is merged by the same sum. Files are those of kohya's sd-scripts, which
`weights.lora` and other programs read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.io import atomic, safetensors_file
from caphuman_jax.weights.convert import shape_of_theirs
from caphuman_jax.weights.names import modules

TARGETS = r"(self|cross)_attention\.(query|key|value|out)\.kernel$"
"""The layers that a LoRA usually changes: the projections of attention."""


def targets(unet: Mapping[str, Any], expression: str) -> list[str]:
    """Dotted paths of the kernels of the UNet that `expression` picks. Raises SettingError where it
    picks none.
    """
    paths = [
        path
        for path in traverse_util.flatten_dict(unet, sep=".")
        if path.endswith(".kernel") and re.search(expression, path)
    ]
    if not paths:
        raise SettingError(f"lora_targets: {expression!r} picks no kernel of the UNet")
    return paths


def start(
    unet: Mapping[str, Any], rank: int, expression: str, generator: np.random.Generator
) -> dict[str, Any]:
    """Factors to begin with, nested like the UNet: "down" (…, inputs, rank) uniform as PyTorch's
    linear layers are, "up" (rank, outputs) zero.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(unet, sep=".")
    factors = {}
    for path in targets(unet, expression):
        *front, outputs = flat[path].shape
        bound = np.float32(np.prod(front) ** -0.5)
        factors[path + ".down"] = generator.uniform(-bound, bound, (*front, rank)).astype(
            np.float32
        )
        factors[path + ".up"] = np.zeros((rank, outputs), np.float32)
    return traverse_util.unflatten_dict(factors, sep=".")


def added(unet: Mapping[str, Any], factors: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The UNet's parameters with scale · down @ up added to those that have factors; scale is alpha
    / rank.
    """
    result = dict(unet)
    for name, part in factors.items():
        if "down" in part and "up" in part and not isinstance(unet[name], Mapping):
            result[name] = unet[name] + jnp.matmul(
                part["down"], part["up"], precision="highest"
            ) * jnp.float32(scale)
        else:
            result[name] = added(unet[name], part, scale)
    return result


def save(
    path: Path,
    cfg: ModelConfig,
    factors: Mapping[str, Any],
    alpha: float,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file of factors (arrays on the host) that `weights.lora.read_file`
    reads.
    """
    names = {f"{ours}.kernel": theirs for _, theirs, ours in modules("unet", cfg)}
    flat, arrays = traverse_util.flatten_dict(dict(factors), sep="."), {}
    for kernel in sorted({place.rpartition(".")[0] for place in flat}):
        down, up = (
            np.asarray(flat[f"{kernel}.down"], np.float32),
            np.asarray(flat[f"{kernel}.up"], np.float32),
        )
        whole = shape_of_theirs(
            kernel, f"{names[kernel]}.weight", (*down.shape[:-1], up.shape[1]), "diffusers"
        )
        key, ones = (
            "lora_unet_" + names[kernel].replace(".", "_"),
            (1,) * (len(whole) - 2),
        )  # convolutions have axes for rows and columns
        rows = down.T if down.ndim == 2 else down.transpose(3, 2, 0, 1)
        arrays[f"{key}.lora_down.weight"] = rows.reshape(rows.shape[0], *whole[1:])
        arrays[f"{key}.lora_up.weight"] = up.T.reshape(*up.T.shape, *ones)
        arrays[f"{key}.alpha"] = np.asarray(alpha, np.float32)
    specs = {key: (array.dtype, array.shape) for key, array in arrays.items()}
    with atomic.file(path) as part:
        safetensors_file.write(
            part, specs, (arrays[key] for key in safetensors_file.order(specs)), metadata
        )
