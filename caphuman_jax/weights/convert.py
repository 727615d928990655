"""PyTorch's layout ↔ ours. Layout changes happen here and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights.names import table


def from_pytorch(
    network: str,
    cfg: ModelConfig,
    shapes: Mapping[str, Any],
    arrays: Mapping[str, Any],
    *,
    prefix: str = "",
    put: Callable[[np.ndarray], Any] = np.ascontiguousarray,
) -> dict[str, Any]:
    """Fill one network.

    Args:
        network: "unet", "capface", "identity", "vae", "text" or "image_encoder".
        shapes: the network's parameters as nested dicts of anything with `.shape` (see
        `models.abstract`).
        arrays: PyTorch name → array; may read each array when it is asked for. Only names that
            begin with `prefix` are looked at, and each of them must be used, except buffers that
            hold no weights (position_ids).
        put: what becomes of each float32 array at once (`jax.device_put`, for instance), so that no
        second copy is held.
    Returns:
        Nested dicts like `shapes`.
    Raises:
        ModelFolderError: naming every missing, surplus and misshapen array.
    """
    wanted: dict[str, Any] = traverse_util.flatten_dict(shapes, sep=".")
    names = {prefix + name: path for name, path in table(network, cfg, wanted).items()}
    unnamed = sorted(set(wanted) - set(names.values()))
    if unnamed:
        raise ModelFolderError(f"{network}: no PyTorch name is known for {', '.join(unnamed)}")

    given = {
        name for name in arrays if name.startswith(prefix) and not name.endswith("position_ids")
    }
    problems = [f"missing {name}" for name in names if name not in given]
    problems += [f"surplus {name}" for name in sorted(given - set(names))]
    filled = {}
    for name, path in names.items():
        if name not in given:
            continue
        array, shape = np.asarray(arrays[name]), tuple(wanted[path].shape)
        if not fits(path, array.shape, shape):
            problems.append(f"{name} has shape {array.shape}, which does not give {shape}")
        elif not problems:
            filled[path] = put(to_ours(path, array, shape).astype(np.float32, copy=False))
    if problems:
        raise ModelFolderError(f"{network}: the weights do not fit: " + "; ".join(problems))
    return traverse_util.unflatten_dict(filled, sep=".")


def fits(path: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether an array of PyTorch's shape `theirs` can be the parameter `path` of our shape."""
    if not path.endswith(".kernel"):
        return theirs == ours
    if len(theirs) == 2:
        return theirs[::-1] == ours
    if (
        len(theirs) == 4 and len(ours) == 2
    ):  # a convolution over patches that do not overlap, 1×1 or larger: a dense layer
        return ours == (math.prod(theirs[1:]), theirs[0])
    return len(theirs) == 4 and (theirs[2], theirs[3], theirs[1], theirs[0]) == ours


def to_ours(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's layout → ours of `shape`, which it fits."""
    if not path.endswith(".kernel"):
        return array
    if array.ndim == 2:  # (out, in) → (in, out)
        return array.T
    return array.transpose(2, 3, 1, 0).reshape(
        shape
    )  # (out, in, rows, columns) → (rows, columns, in, out)


# What is a convolution there and a dense layer here: 1×1, and CLIP's patches.
_CONVOLUTIONS = {
    "ldm": r"(.*\.)?(proj_in|proj_out|skip_connection|zero_convs\.\d+\.0|middle_block_out\.0|nin_shortcut|attn_1\.[qkv]|(post_)?quant_conv)",
    "diffusers": r"(.*\.)?(proj_in|proj_out|conv_shortcut|controlnet_down_blocks\.\d+|controlnet_mid_block|(post_)?quant_conv)",
}


def shape_of_theirs(
    path: str, name: str, shape: tuple[int, ...], form: str = "ldm"
) -> tuple[int, ...]:
    """The PyTorch shape of the parameter `path` of our `shape`; `name`: its PyTorch name; `form` as
    in `names.table`.
    """
    if not path.endswith(".kernel"):
        return shape
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    if name.endswith("patch_embedding.weight"):  # square patches of three channels
        side = math.isqrt(shape[0] // 3)
        return shape[1], 3, side, side
    return (
        (*shape[::-1], 1, 1)
        if re.fullmatch(_CONVOLUTIONS[form], name.removesuffix(".weight"))
        else shape[::-1]
    )


def to_theirs(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Our layout → PyTorch's of `shape` (of `shape_of_theirs`)."""
    if not path.endswith(".kernel"):
        return array
    if len(shape) == 2:
        return array.T
    return array.reshape(shape[2], shape[3], shape[1], shape[0]).transpose(3, 2, 0, 1)
