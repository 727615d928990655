"""CapFace, CapHuman's control branch (arXiv 2402.00627), and what is done with its residuals.

A ControlNet that sees head hints and identity tokens, never the prompt, and predicts where the face
is. The hint features and the mask do not depend on the timestep: compute them once, before the
sampling loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from caphuman_jax.config import CapFaceConfig, UNetConfig
from caphuman_jax.models.controlnet import Control, ControlNet
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import conv
from caphuman_jax.nn.typing import Rngs


class CapFace(ControlNet):
    """Control residuals from hints and identity, not gated yet; its context is the identity
    tokens.
    """

    def __init__(
        self,
        unet: UNetConfig,
        cfg: CapFaceConfig,
        compute: ComputeConfig = ComputeConfig(),
        *,
        rngs: Rngs,
    ):
        super().__init__(unet, cfg, compute, rngs=rngs)
        self.mask_out = conv(unet.channels, 1, compute=compute, rngs=rngs)

    def mask(self, hint_features: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
        """Hint features → probability (B, h, w, 1) float32 that a latent position belongs to the
        face.
        """
        return jax.nn.sigmoid(self.mask_out(hint_features).astype(jnp.float32))


def gate(control: Control, mask: Float[Array, "b h w 1"], hard: bool = True) -> Control:
    """Keep the residuals where the face is.

    Args:
        control: residuals (B, h_i, w_i, C_i).
        mask: (B, h, w, 1) probabilities of `CapFace.mask`; no gradient flows through it. Resized
            bilinearly (not antialiased) to each residual's size.
        hard: threshold the resized mask at 0.5; otherwise multiply by its value.
    """
    return gate_by(control, gates(mask, [(x.shape[1], x.shape[2]) for x in control], hard))


def gate_by(control: Iterable[jax.Array], by: Sequence[jax.Array]) -> Control:
    """Residuals (B, h_i, w_i, C_i) times what `gates` made for their sizes."""
    return tuple(x * g.astype(x.dtype) for x, g in zip(control, by))


def gates(
    mask: Float[Array, "b h w 1"], sizes: Sequence[tuple[int, int]], hard: bool = True
) -> list[jax.Array]:
    """What `gate` multiplies residuals of these (height, width) by: (B, height, width, 1), bool or
    float32, made once a size.
    """
    mask = jax.lax.stop_gradient(mask.astype(jnp.float32))

    def resized(size):
        whole = jax.image.resize(mask, (mask.shape[0], *size, 1), "bilinear", antialias=False)
        return whole > 0.5 if hard else whole

    made = {size: resized(size) for size in dict.fromkeys(sizes)}
    return [made[size] for size in sizes]


def scale_control(control: Control, strength: float | jax.Array | Sequence[float]) -> Control:
    """Multiply the residuals by one strength, or each by its own."""
    strengths = strength if isinstance(strength, Sequence) else [strength] * len(control)
    return tuple(x * jnp.asarray(s, x.dtype) for x, s in zip(control, strengths, strict=True))


def sum_controls(controls: Sequence[Control]) -> Control:
    """Sum over several people, each gated by their own mask beforehand."""
    return tuple(sum(parts[1:], parts[0]) for parts in zip(*controls, strict=True))


def start_from_unet(capface_params: dict, unet_params: dict) -> dict:
    """CapFace's parameters with its encoder a copy of the UNet's: where training from a pretrained
    UNet begins.
    """
    return {**capface_params, "encoder": jax.tree.map(jnp.copy, unet_params["encoder"])}
