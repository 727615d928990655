"""DECA's coarse encoder (arXiv 2012.04012): a face crop → 236 numbers of a FLAME head, its texture,
light and camera.

The names are those of `E_flame` in deca_model.tar. `head/models/deca.py` makes the crop, and hints
from the numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.convnet import ResNet
from caphuman_jax.nn.layers import linear
from caphuman_jax.nn.typing import Rngs

SIZE = 224
PARTS = {"shape": 100, "texture": 50, "expression": 50, "pose": 6, "camera": 3, "light": 27}
"""What the numbers are, in their order. pose: global turn and jaw, axis-angle; camera: scale, x, y;
light: 9 SH × RGB.
"""


class DecaEncoder(nnx.Module):
    """ResNet-50, average, two dense layers."""

    def __init__(self, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs):
        self.dtype = compute.dtype
        self.resnet = ResNet((3, 4, 6, 3), bottleneck=True, compute=compute, rngs=rngs)
        self.hidden = linear(2048, 1024, compute=compute, rngs=rngs)
        self.codes = linear(1024, sum(PARTS.values()), compute=compute, rngs=rngs)

    def __call__(self, crops: Float[Array, "b 224 224 3"]) -> Float[Array, "b 236"]:
        """Crops (B, 224, 224, 3), RGB in [0, 1] → (B, 236) float32."""
        features = (
            self.resnet(crops.astype(self.dtype))[-1]
            .astype(jnp.float32)
            .mean(axis=(1, 2))
            .astype(self.dtype)
        )
        return self.codes(jax.nn.relu(self.hidden(features))).astype(jnp.float32)


def split_code(code: jax.Array) -> dict[str, jax.Array]:
    """(…, 236) → {"shape": (…, 100), "texture": (…, 50), "expression": (…, 50), "pose": (…, 6),
    "camera": (…, 3), "light": (…, 9, 3)}.
    """
    parts, begin = {}, 0
    for name, count in PARTS.items():
        parts[name] = code[..., begin : begin + count]
        begin += count
    return parts | {"light": parts["light"].reshape(*code.shape[:-1], 9, 3)}


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef: nnx.GraphDef, params: dict, crops: jax.Array) -> dict[str, jax.Array]:
    """Crops (B, 224, 224, 3), RGB in [0, 1] → the numbers of `split_code`. Compiled once for each
    B.
    """
    with jax.default_matmul_precision(
        "highest"
    ):  # Of float32: a GPU's short products would move a head.
        return split_code(nnx.merge(graphdef, params)(crops))
