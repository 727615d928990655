"""KL autoencoder between pictures and latents (Rombach et al. 2022, arXiv 2112.10752,
appendix G).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from caphuman_jax.config import VAEConfig
from caphuman_jax.nn.attention import attention
from caphuman_jax.nn.blocks import ResBlock
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import (
    GroupNorm,
    conv,
    convolve_upsampled,
    depth_to_space,
    linear,
    space_to_depth,
)
from caphuman_jax.nn.typing import Rngs

_EPS = 1e-6


class VAE(nnx.Module):
    """Encoder, decoder and the 1×1 convolutions around the latents.

    Latents here are as the decoder takes them; the diffusion networks see them multiplied by
    `cfg.scaling_factor`."""

    def __init__(self, cfg: VAEConfig, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs):
        self.encoder = Encoder(cfg, compute=compute, rngs=rngs)
        self.quant = linear(
            2 * cfg.latent_channels, 2 * cfg.latent_channels, compute=compute, rngs=rngs
        )
        self.post_quant = linear(
            cfg.latent_channels, cfg.latent_channels, compute=compute, rngs=rngs
        )
        self.decoder = Decoder(cfg, compute=compute, rngs=rngs)

    def encode(
        self, images: Float[Array, "b H W n"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Posterior of the latents.

        images (B, H, W, image_channels) in [-1, 1], H and W multiples of the downsampling f → mean,
        log variance: each (B, H/f, W/f, latent_channels) float32, unscaled; the log variance lies
        in [-30, 20]."""
        mean, logvar = jnp.split(self.quant(self.encoder(images)).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W n"]:
        """Unscaled latents (B, h, w, latent_channels) → pictures (B, f·h, f·w, image_channels)
        float32, about [-1, 1].
        """
        return self.decoder(self.post_quant(latents)).astype(jnp.float32)


class Encoder(nnx.Module):
    """Pictures → moments of the latents before `quant`."""

    def __init__(self, cfg: VAEConfig, *, compute: ComputeConfig, rngs: Rngs):
        self.patch = cfg.patch
        self.blocks_per_level = cfg.blocks_per_level
        widths = [cfg.encoder_channels * m for m in cfg.channel_multipliers]
        block = _blocks(cfg, compute, rngs)
        self.conv_in = conv(
            cfg.image_channels * cfg.patch**2, widths[0], compute=compute, rngs=rngs
        )
        self.down = nnx.Dict({})
        width = widths[0]
        for level, outputs in enumerate(widths):
            stage = nnx.Dict({})
            for i in range(self.blocks_per_level):
                stage[f"res_{i}"] = block(width, outputs)
                width = outputs
            if level < len(widths) - 1:
                # One pixel of padding at the right and at the bottom only.
                stage["downsample"] = conv(
                    width, width, stride=2, padding=((0, 1), (0, 1)), compute=compute, rngs=rngs
                )
            self.down[str(level)] = stage
        self.middle = Middle(width, cfg, compute=compute, rngs=rngs)
        self.norm_out = GroupNorm(width, cfg.groups, _EPS, compute=compute)
        self.conv_out = conv(width, 2 * cfg.latent_channels, compute=compute, rngs=rngs)

    def __call__(self, images: Float[Array, "b H W n"]) -> Float[Array, "b h w c"]:
        """(B, H, W, image_channels) → (B, H/f, W/f, 2·latent_channels)."""
        h = self.conv_in(space_to_depth(images, self.patch))
        for level in range(len(self.down)):
            stage = self.down[str(level)]
            for i in range(self.blocks_per_level):
                h = stage[f"res_{i}"](h)
            if "downsample" in stage:
                h = stage["downsample"](h)
        return self.conv_out(self.norm_out(self.middle(h), silu=True))


class Decoder(nnx.Module):
    """Latents after `post_quant` → pictures."""

    def __init__(self, cfg: VAEConfig, *, compute: ComputeConfig, rngs: Rngs):
        self.compute = compute
        self.patch = cfg.patch
        self.blocks_per_level = cfg.blocks_per_level + 1
        widths = [cfg.decoder_channels * m for m in reversed(cfg.channel_multipliers)]
        block = _blocks(cfg, compute, rngs)
        self.conv_in = conv(cfg.latent_channels, widths[0], compute=compute, rngs=rngs)
        self.middle = Middle(widths[0], cfg, compute=compute, rngs=rngs)
        self.up = nnx.Dict({})
        width = widths[0]
        for level, outputs in enumerate(widths):
            stage = nnx.Dict({})
            for i in range(self.blocks_per_level):
                stage[f"res_{i}"] = block(width, outputs)
                width = outputs
            if level < len(widths) - 1:
                stage["upsample"] = conv(width, width, compute=compute, rngs=rngs)
            self.up[str(level)] = stage
        self.norm_out = GroupNorm(width, cfg.groups, _EPS, compute=compute)
        self.conv_out = conv(width, cfg.image_channels * cfg.patch**2, compute=compute, rngs=rngs)

    def __call__(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W n"]:
        """(B, h, w, latent_channels) → (B, f·h, f·w, image_channels)."""
        h = self.middle(self.conv_in(latents))
        for level in range(len(self.up)):
            stage = self.up[str(level)]
            for i in range(self.blocks_per_level):
                h = stage[f"res_{i}"](h)
            if "upsample" in stage:
                h = convolve_upsampled(stage["upsample"], h, self.compute)
        return depth_to_space(self.conv_out(self.norm_out(h, silu=True)), self.patch)


class Middle(nnx.Module):
    """Residual block, self-attention with one head, residual block."""

    def __init__(self, width: int, cfg: VAEConfig, *, compute: ComputeConfig, rngs: Rngs):
        block = _blocks(cfg, compute, rngs)
        self.compute = compute
        self.res_1 = block(width, width)
        self.norm = GroupNorm(width, cfg.groups, _EPS, compute=compute)
        self.query = linear(width, width, compute=compute, rngs=rngs)
        self.key = linear(width, width, compute=compute, rngs=rngs)
        self.value = linear(width, width, compute=compute, rngs=rngs)
        self.out = linear(width, width, compute=compute, rngs=rngs)
        self.res_2 = block(width, width)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """(B, h, w, width) → the same."""
        x = self.res_1(x)
        positions = self.norm(x).reshape(x.shape[0], -1, x.shape[3])
        h = attention(
            self.query(positions),
            self.key(positions),
            self.value(positions),
            heads=1,
            compute=self.compute,
        )
        return self.res_2(x + self.out(h).reshape(x.shape))


def _blocks(cfg: VAEConfig, compute: ComputeConfig, rngs: Rngs):
    return lambda inputs, outputs: ResBlock(
        inputs, outputs, groups=cfg.groups, eps=_EPS, compute=compute, rngs=rngs
    )
