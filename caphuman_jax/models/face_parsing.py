"""Face parsing: a face picture → 19 classes a pixel, by BiSeNet (arXiv 1808.00897) on a ResNet-18.

The network and names are those of zllrunning's face-parsing.PyTorch; its file 79999_iter.pth,
trained on CelebAMask-HQ, fits as it is. It is made for pictures that a face with hair and neck
fills: cut those out of a larger photo first."""

from __future__ import annotations

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float, Shaped
from PIL import Image

from caphuman_jax.errors import PhotoError
from caphuman_jax.models.network import Network
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.convnet import ConvNorm, ResNet
from caphuman_jax.nn.layers import linear, upsample
from caphuman_jax.nn.typing import Rngs

SIZE = 512
LABELS = (
    "background",
    "skin",
    "left_brow",
    "right_brow",
    "left_eye",
    "right_eye",
    "glasses",
    "left_ear",
    "right_ear",
    "earring",
    "nose",
    "mouth",
    "upper_lip",
    "lower_lip",
    "neck",
    "necklace",
    "clothes",
    "hair",
    "hat",
)
# What CapHuman paints white: background, ears, ear-ring, neck, necklace, clothes, hair and hat.
NOT_FACE = (0, 7, 8, 9, 14, 15, 16, 17, 18)
# Mean and standard deviation of ImageNet's pictures, RGB in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(
    images: Shaped[jax.Array | np.ndarray, "b h w 3"],
) -> Float[jax.Array, "b h w 3"]:
    """Pictures (B, H, W, 3), RGB 0–255 of any dtype → what `BiSeNet` takes."""
    mean, std = (broadcast_to_rank(numbers, images.ndim) for numbers in (MEAN, STD))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std


class BiSeNet(nnx.Module):
    """Features at 1/8 from two depths of the ResNet, fused and classified."""

    def __init__(self, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs):
        common = {"compute": compute, "rngs": rngs}
        self.dtype = compute.dtype
        self.resnet = ResNet((2, 2, 2, 2), bottleneck=False, **common)
        self.context = ConvNorm(512, 128, 1, **common)
        self.attend_32 = Attend(512, **common)
        self.attend_16 = Attend(256, **common)
        self.head_32 = ConvNorm(128, 128, 3, padding=1, **common)
        self.head_16 = ConvNorm(128, 128, 3, padding=1, **common)
        self.fuse = ConvNorm(256, 256, 1, **common)
        self.narrow = linear(256, 64, use_bias=False, **common)
        self.widen = linear(64, 256, use_bias=False, **common)
        self.features = ConvNorm(256, 256, 3, padding=1, **common)
        self.classes = linear(256, len(LABELS), use_bias=False, **common)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 19"]:
        """Pictures (B, H, W, 3) of `normalize`, H and W multiples of 32 → logits (B, H, W, 19)
        float32.
        """
        _, at_8, at_16, at_32 = self.resnet(images.astype(self.dtype))
        h = self.head_32(upsample(self.attend_32(at_32) + self.context(_average(at_32))))
        h = self.head_16(upsample(self.attend_16(at_16) + h))
        fused = self.fuse(jnp.concatenate([at_8, h], axis=-1))
        fused = fused + fused * jax.nn.sigmoid(
            self.widen(jax.nn.relu(self.narrow(_average(fused))))
        )
        logits = self.classes(self.features(fused)).astype(jnp.float32)
        return resize_corners(logits, images.shape[1], images.shape[2])


class Attend(nnx.Module):
    """A 3×3 convolution whose channels are weighed by their average over the picture."""

    def __init__(self, inputs: int, *, compute: ComputeConfig, rngs: Rngs):
        self.conv = ConvNorm(inputs, 128, 3, padding=1, compute=compute, rngs=rngs)
        self.weigh = ConvNorm(128, 128, 1, activate=False, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 128"]:
        """(B, H, W, inputs) → (B, H, W, 128)."""
        x = self.conv(x)
        return x * jax.nn.sigmoid(self.weigh(_average(x)))


def resize_corners(
    x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b {height} {width} c"]:
    """Bilinear (B, h, w, C) float32 → (B, height, width, C), the corner pixels' centers on the
    corners' ("align_corners").
    """
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Hh,bhwc->bHwc", _corner_weights(x.shape[1], height), x, precision=highest)
    return jnp.einsum("Ww,bHwc->bHWc", _corner_weights(x.shape[2], width), x, precision=highest)


def _corner_weights(old: int, new: int) -> jax.Array:
    """Matrix (new, old) of linear interpolation."""
    place = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return jnp.asarray(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old))), jnp.float32)


def _average(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, 1, 1, C), summed in float32."""
    return x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=0)
def classify(graphdef: nnx.GraphDef, params: dict, images: jax.Array) -> jax.Array:
    """Pictures (B, H, W, 3), RGB 0–255, H and W multiples of 32 (512 in use) → label maps (B, H, W)
    uint8, see LABELS.
    """
    with jax.default_matmul_precision("highest"):
        return jnp.argmax(nnx.merge(graphdef, params)(normalize(images)), axis=-1).astype(jnp.uint8)


def parse(network: Network, image: np.ndarray) -> np.ndarray:
    """Label map (H, W) uint8, see LABELS, of one RGB uint8 picture (H, W, 3) of any size,
    classified at 512².

    Raises PhotoError if the picture is not that.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise PhotoError(
            f"face parsing takes a picture of height × width × 3 of 8 bits, not {image.shape} of "
            f"{image.dtype}"
        )
    height, width = image.shape[:2]
    square = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    labels = np.asarray(classify(*network, square[None]))[0]
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def face_region(labels: np.ndarray) -> np.ndarray:
    """Boolean (…): where a label map shows the face, and so what is not painted white."""
    return ~np.isin(labels, NOT_FACE)
