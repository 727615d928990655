"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): control residuals for the UNet from a picture
of what is wanted.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from caphuman_jax.config import CapFaceConfig, UNetConfig
from caphuman_jax.models.unet import Context, Encoder, TimeBiases, skip_widths
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import conv, linear
from caphuman_jax.nn.typing import Rngs

Control = tuple[jax.Array, ...]


class ControlNet(nnx.Module):
    """A copy of the UNet's encoder that sees hints; its residuals are all zero until trained,
    whatever its inputs.

    ControlNet v1.1 for Stable Diffusion 1.5 has hints of 3 channels, RGB in [0, 1], and the prompt
    as its context. The hint features do not depend on the timestep: compute them once, before the
    sampling loop."""

    def __init__(
        self,
        unet: UNetConfig,
        cfg: CapFaceConfig,
        compute: ComputeConfig = ComputeConfig(),
        *,
        rngs: Rngs,
    ):
        self.encoder = Encoder(unet, compute, rngs=rngs)
        self.hint = HintEncoder(unet.channels, cfg, compute, rngs=rngs)
        skips = skip_widths(unet)
        self.zero = nnx.Dict(
            {
                str(i): linear(width, width, compute=compute, rngs=rngs, zero=True)
                for i, width in enumerate([*skips, skips[-1]])
            }
        )

    def encode_hints(self, hints: Float[Array, "b H W n"]) -> Float[Array, "b h w c"]:
        """Hints (B, H, W, hint_channels), H and W picture size → hint features (B, h, w, channels)
        at latent size.
        """
        return self.hint(hints)

    def embed_times(self, timesteps: Float[Array, " s"]) -> TimeBiases:
        """What timesteps (S,) float32 add in every block; computed once, before the
        sampling loop.
        """
        return self.encoder.embed_times(timesteps)

    def encode_context(self, context: Float[Array, "b n d"]) -> Context:
        """Keys and values of every cross-attention for a context (B, N, cross_attention_dim); the
        same at all steps."""
        return self.encoder.encode_context(context)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"] | TimeBiases,
        context: Float[Array, "kb n d"] | Context,
        hint_features: Float[Array, "b h w f"],
    ) -> Control:
        """Residuals for the UNet.

        latents (B, h, w, C), timesteps (B,) float32, context (kB, N, cross_attention_dim): text
        tokens, hint_features of `encode_hints`; or of timesteps and context what `embed_times` and
        `encode_context` made of them → one residual for each skip, shallow to deep, and one for the
        middle, of B (from before the context) or kB pictures.
        """
        skips, middle = self.encoder(latents, timesteps, context, hint_features)
        return tuple(self.zero[str(i)](x) for i, x in enumerate([*skips, middle]))


class HintEncoder(nnx.Module):
    """3×3 convolutions from picture size to latent size: two at each width, one stride-2 step
    between widths.
    """

    def __init__(self, channels: int, cfg: CapFaceConfig, compute: ComputeConfig, *, rngs: Rngs):
        first, *wider = cfg.hint_widths
        steps = [(cfg.hint_channels, first, 1), (first, first, 1)]
        for width in wider:
            steps += [(steps[-1][1], width, 2), (width, width, 1)]
        steps[-1] = (steps[-1][0], channels, 1)
        last = len(steps) - 1
        self.convs = nnx.Dict(
            {
                str(i): conv(
                    inputs, outputs, stride=stride, compute=compute, rngs=rngs, zero=i == last
                )
                for i, (inputs, outputs, stride) in enumerate(steps)
            }
        )

    def __call__(self, hints: Float[Array, "b H W n"]) -> Float[Array, "b h w c"]:
        """(B, H, W, hint_channels) → (B, h, w, channels)."""
        h = self.convs["0"](hints)
        for i in range(1, len(self.convs)):
            h = self.convs[str(i)](jax.nn.silu(h))
        return h
