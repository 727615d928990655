"""CapFace, CapHuman's control branch (arXiv 2402.00627), and what is done with its residuals.

A copy of the UNet's encoder (as in ControlNet, arXiv 2302.05543) that sees head hints and identity tokens, never the prompt.
The hint features and the mask do not depend on the timestep: compute them once, before the sampling loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from caphuman_jax.config import CapFaceConfig, UNetConfig
from caphuman_jax.models.unet import Encoder, skip_widths
from caphuman_jax.nn.layers import conv, linear

Control = tuple[jax.Array, ...]


class CapFace(nnx.Module):
    """Control residuals from hints and identity; all zero until trained, whatever its inputs."""

    def __init__(self, unet: UNetConfig, cfg: CapFaceConfig, dtype=jnp.float32, *, rngs: nnx.Rngs):
        self.encoder = Encoder(unet, dtype, rngs=rngs)
        self.hint = HintEncoder(unet.channels, cfg, dtype, rngs=rngs)
        self.mask_out = conv(unet.channels, 1, dtype=dtype, rngs=rngs)
        skips = skip_widths(unet)
        self.zero = nnx.Dict({
            str(i): linear(width, width, dtype=dtype, rngs=rngs, zero=True) for i, width in enumerate([*skips, skips[-1]])
        })

    def encode_hints(self, hints: jax.Array) -> jax.Array:
        """Hints (B, H, W, hint_channels), H and W picture size → hint features (B, h, w, channels) at latent size."""
        return self.hint(hints)

    def mask(self, hint_features: jax.Array) -> jax.Array:
        """Hint features → probability (B, h, w, 1) float32 that a latent position belongs to the face."""
        return jax.nn.sigmoid(self.mask_out(hint_features).astype(jnp.float32))

    def __call__(self, latents: jax.Array, timesteps: jax.Array, identity: jax.Array, hint_features: jax.Array) -> Control:
        """Residuals for the UNet, not gated yet.

        latents (B, h, w, C), timesteps (B,) float32, identity tokens (B, N, context_width), hint_features of `encode_hints`
        → one residual for each skip, shallow to deep, and one for the middle.
        """
        skips, middle, _ = self.encoder(latents, timesteps, identity, hint_features)
        return tuple(self.zero[str(i)](x) for i, x in enumerate([*skips, middle]))


class HintEncoder(nnx.Module):
    """3×3 convolutions from picture size to latent size: two at each width, one stride-2 step between widths."""

    def __init__(self, channels: int, cfg: CapFaceConfig, dtype, *, rngs: nnx.Rngs):
        first, *wider = cfg.hint_widths
        steps = [(cfg.hint_channels, first, 1), (first, first, 1)]
        for width in wider:
            steps += [(steps[-1][1], width, 2), (width, width, 1)]
        steps[-1] = (steps[-1][0], channels, 1)
        last = len(steps) - 1
        self.convs = nnx.Dict({
            str(i): conv(inputs, outputs, stride=stride, dtype=dtype, rngs=rngs, zero=i == last)
            for i, (inputs, outputs, stride) in enumerate(steps)
        })

    def __call__(self, hints: jax.Array) -> jax.Array:
        """(B, H, W, hint_channels) → (B, h, w, channels)."""
        h = self.convs["0"](hints)
        for i in range(1, len(self.convs)):
            h = self.convs[str(i)](jax.nn.silu(h))
        return h


def gate(control: Control, mask: jax.Array, hard: bool = True) -> Control:
    """Keep the residuals where the face is.

    Args:
        control: residuals (B, h_i, w_i, C_i).
        mask: (B, h, w, 1) probabilities of `CapFace.mask`; no gradient flows through it. Resized bilinearly (not antialiased)
            to each residual's size.
        hard: threshold the resized mask at 0.5; otherwise multiply by its value.
    """
    mask = jax.lax.stop_gradient(mask.astype(jnp.float32))

    def gated(x):
        resized = jax.image.resize(mask, (mask.shape[0], *x.shape[1:3], 1), "bilinear", antialias=False)
        return x * (resized > 0.5 if hard else resized).astype(x.dtype)

    return tuple(gated(x) for x in control)


def scale_control(control: Control, strength: float | jax.Array | Sequence[float]) -> Control:
    """Multiply the residuals by one strength, or each by its own."""
    strengths = strength if isinstance(strength, Sequence) else [strength] * len(control)
    return tuple(x * jnp.asarray(s, x.dtype) for x, s in zip(control, strengths, strict=True))


def sum_controls(controls: Sequence[Control]) -> Control:
    """Sum over several people, each gated by their own mask beforehand."""
    return tuple(sum(parts[1:], parts[0]) for parts in zip(*controls, strict=True))


def start_from_unet(capface_params: dict, unet_params: dict) -> dict:
    """CapFace's parameters with its encoder a copy of the UNet's: where training from a pretrained UNet begins."""
    return {**capface_params, "encoder": jax.tree.map(jnp.copy, unet_params["encoder"])}
