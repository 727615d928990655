"""Flax's names and layouts of diffusers and transformers → those of their PyTorch models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_LISTS = (
    "attentions", "blocks", "controlnet_down_blocks", "down_blocks", "downsamplers", "net",
    "resnets", "to_out", "transformer_blocks", "up_blocks", "upsamplers",
)  # fmt: skip
"""Lists of modules, whose members Flax names LIST_NUMBER."""
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class Transposed:
    """A kernel in PyTorch's layout, read when it is asked for."""

    def __init__(self, tensor: Any):
        self._tensor, self.dtype = tensor, tensor.dtype
        self._order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(tensor.shape))
        order = self._order or range(len(tensor.shape))
        self.shape = tuple(tensor.shape[axis] for axis in order)

    def read(self) -> np.ndarray:
        """The values."""
        return self._tensor.read().transpose(self._order)


def pytorch_name(name: str) -> str:
    """A dotted Flax name → PyTorch's."""
    *parts, leaf = name.split(".")
    parts = [re.sub(rf"^({'|'.join(_LISTS)})_(\d+)$", r"\1.\2", part) for part in parts]
    return ".".join([*parts, _LEAVES.get(leaf, leaf)])


def to_pytorch(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted Flax name: tensor} → {PyTorch's name: tensor in PyTorch's layout}."""
    return {
        pytorch_name(name): Transposed(tensor) if name.endswith(".kernel") else tensor
        for name, tensor in tensors.items()
    }
