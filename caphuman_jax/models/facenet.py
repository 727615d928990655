"""FaceNet: a face crop → a vector that is near for the same person (arXiv 1503.03832), by
InceptionResnetV1 (arXiv 1602.07261).

The network and names are facenet-pytorch's; its file for VGGFace2, 20180402-114759-vggface2.pt,
fits as it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.convnet import BatchNorm, ConvNorm, max_pool
from caphuman_jax.nn.layers import linear
from caphuman_jax.nn.typing import Rngs

SIZE, WIDTH = 160, 512
_EPS = 1e-3
# A branch is a list of convolutions: (channels, kernel, stride, padding).
Branch = Sequence[tuple[int, Any, int, Any]]


def normalize(
    crops: Shaped[jax.Array | np.ndarray, "b h w 3"],
) -> Float[jax.Array, "b h w 3"]:
    """Crops (B, 160, 160, 3), RGB 0–255 of any dtype → what `FaceNet` takes, float32 in about [-1,
    1].
    """
    return (jnp.asarray(crops).astype(jnp.float32) - 127.5) / 128


class FaceNet(nnx.Module):
    """InceptionResnetV1 without its classifier."""

    def __init__(self, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs):
        conv = functools.partial(ConvNorm, eps=_EPS, compute=compute, rngs=rngs)
        common = {"compute": compute, "rngs": rngs}
        self.dtype = compute.dtype
        self.conv_1a = conv(3, 32, 3, stride=2)
        self.conv_2a = conv(32, 32, 3)
        self.conv_2b = conv(32, 64, 3, padding=1)
        self.conv_3b = conv(64, 80, 1)
        self.conv_4a = conv(80, 192, 3)
        self.conv_4b = conv(192, 256, 3, stride=2)
        block_35 = [
            [(32, 1, 1, 0)],
            [(32, 1, 1, 0), (32, 3, 1, 1)],
            [(32, 1, 1, 0), (32, 3, 1, 1), (32, 3, 1, 1)],
        ]
        block_17 = [
            [(128, 1, 1, 0)],
            [(128, 1, 1, 0), (128, (1, 7), 1, (0, 3)), (128, (7, 1), 1, (3, 0))],
        ]
        block_8 = [
            [(192, 1, 1, 0)],
            [(192, 1, 1, 0), (192, (1, 3), 1, (0, 1)), (192, (3, 1), 1, (1, 0))],
        ]
        self.repeat_1 = nnx.Dict(
            {str(i): InceptionResidual(256, block_35, scale=0.17, **common) for i in range(5)}
        )
        self.mixed_6a = Reduction(
            256, [[(384, 3, 2, 0)], [(192, 1, 1, 0), (192, 3, 1, 1), (256, 3, 2, 0)]], **common
        )
        self.repeat_2 = nnx.Dict(
            {str(i): InceptionResidual(896, block_17, scale=0.10, **common) for i in range(10)}
        )
        self.mixed_7a = Reduction(
            896,
            [
                [(256, 1, 1, 0), (384, 3, 2, 0)],
                [(256, 1, 1, 0), (256, 3, 2, 0)],
                [(256, 1, 1, 0), (256, 3, 1, 1), (256, 3, 2, 0)],
            ],
            **common,
        )
        self.repeat_3 = nnx.Dict(
            {str(i): InceptionResidual(1792, block_8, scale=0.20, **common) for i in range(5)}
        )
        self.block8 = InceptionResidual(1792, block_8, scale=1.0, activate=False, **common)
        self.embed = linear(1792, WIDTH, use_bias=False, **common)
        self.embed_norm = BatchNorm(WIDTH, _EPS)

    def __call__(self, crops: Float[Array, "b 160 160 3"]) -> Float[Array, "b 512"]:
        """Crops (B, 160, 160, 3) of `normalize` → unit vectors (B, 512) float32."""
        x = max_pool(self.conv_2b(self.conv_2a(self.conv_1a(crops.astype(self.dtype)))))
        x = self.conv_4b(self.conv_4a(self.conv_3b(x)))
        for stage in (
            self.repeat_1,
            self.mixed_6a,
            self.repeat_2,
            self.mixed_7a,
            self.repeat_3,
            self.block8,
        ):
            for block in (
                (stage[str(i)] for i in range(len(stage)))
                if isinstance(stage, nnx.Dict)
                else (stage,)
            ):
                x = block(x)
        x = self.embed(x.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)).astype(
            jnp.float32
        )
        x = self.embed_norm(x)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class InceptionResidual(nnx.Module):
    """Branches side by side, mixed by a 1×1 convolution and added, scaled, to the input."""

    def __init__(
        self,
        width: int,
        branches: Sequence[Branch],
        *,
        scale: float,
        activate: bool = True,
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        self.scale = scale
        self.activate = activate
        self.branches = _branches(width, branches, compute, rngs)
        self.mix = linear(
            sum(branch[-1][0] for branch in branches), width, compute=compute, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """(B, H, W, width) → the same."""
        x = x + self.mix(jnp.concatenate(_run(self.branches, x), axis=-1)) * jnp.asarray(
            self.scale, x.dtype
        )
        return jax.nn.relu(x) if self.activate else x


class Reduction(nnx.Module):
    """Branches side by side that halve the size, and a maximum beside them."""

    def __init__(
        self, width: int, branches: Sequence[Branch], *, compute: ComputeConfig, rngs: Rngs
    ):
        self.branches = _branches(width, branches, compute, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        """(B, H, W, width) → (B, H', W', width + the branches' channels)."""
        return jnp.concatenate([*_run(self.branches, x), max_pool(x)], axis=-1)


def _branches(
    width: int, branches: Sequence[Branch], compute: ComputeConfig, rngs: Rngs
) -> nnx.Dict:
    made = nnx.Dict({})
    for number, branch in enumerate(branches):
        made[str(number)] = nnx.Dict({})
        inputs = width
        for i, (channels, kernel, stride, padding) in enumerate(branch):
            made[str(number)][str(i)] = ConvNorm(
                inputs,
                channels,
                kernel,
                stride=stride,
                padding=padding,
                eps=_EPS,
                compute=compute,
                rngs=rngs,
            )
            inputs = channels
    return made


def _run(branches: nnx.Dict, x: jax.Array) -> list[jax.Array]:
    outputs = []
    for number in range(len(branches)):
        h = x
        for i in range(len(branches[str(number)])):
            h = branches[str(number)][str(i)](h)
        outputs.append(h)
    return outputs


@functools.partial(jax.jit, static_argnums=0)
def embed(graphdef: nnx.GraphDef, params: dict, crops: jax.Array) -> jax.Array:
    """Crops (B, 160, 160, 3), RGB 0–255 → unit vectors (B, 512) float32. Compiled once
    for each B.
    """
    with jax.default_matmul_precision(
        "highest"
    ):  # Of float32: a GPU's short products would move a vector by a thousandth.
        return nnx.merge(graphdef, params)(normalize(crops))
