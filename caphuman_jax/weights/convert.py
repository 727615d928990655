"""PyTorch's layout ↔ ours. Layout changes happen here and nowhere else."""

from __future__ import annotations

import math
import re

import numpy as np


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
    "ldm": r"(.*\.)?(proj_in|proj_out|skip_connection|zero_convs\.\d+\.0|middle_block_out\.0"
    r"|nin_shortcut|attn_1\.[qkv]|(post_)?quant_conv)",
    "diffusers": r"(.*\.)?(proj_in|proj_out|conv_shortcut|controlnet_down_blocks\.\d+"
    r"|controlnet_mid_block|(post_)?quant_conv)",
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
