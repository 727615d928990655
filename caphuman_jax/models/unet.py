"""The denoising UNet of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), Stable Diffusion 1's by default."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from caphuman_jax.config import UNetConfig
from caphuman_jax.nn import choices
from caphuman_jax.nn.blocks import ResBlock, TransformerBlock
from caphuman_jax.nn.layers import GroupNorm, conv, linear, upsample
from caphuman_jax.nn.timesteps import timestep_embedding


class UNet(nnx.Module):
    """Predicts the noise (or v) in latents from the timestep and text tokens, steered by control residuals."""

    def __init__(self, cfg: UNetConfig, dtype=jnp.float32, *, rngs: nnx.Rngs):
        self.levels = len(cfg.multipliers)
        self.res_blocks = cfg.res_blocks + 1
        self.encoder = Encoder(cfg, dtype, rngs=rngs)
        skips = skip_widths(cfg)
        width = skips[-1]
        self.up = nnx.Dict({})
        for level in reversed(range(self.levels)):
            outputs = cfg.channels * cfg.multipliers[level]
            stage = nnx.Dict({})
            for i in range(self.res_blocks):
                stage[f"res_{i}"] = _res_block(width + skips.pop(), outputs, cfg, dtype, rngs)
                width = outputs
                if 2**level in cfg.attention_downsamplings:
                    stage[f"attention_{i}"] = _attention(width, cfg, dtype, rngs)
            if level > 0:
                stage["upsample"] = conv(width, width, dtype=dtype, rngs=rngs)
            self.up[str(level)] = stage
        self.norm_out = GroupNorm(width, cfg.groups)
        self.conv_out = conv(width, cfg.out_channels, dtype=dtype, rngs=rngs, zero=True)

    def __call__(
        self, latents: jax.Array, timesteps: jax.Array, text: jax.Array, control: tuple[jax.Array, ...] | None = None
    ) -> jax.Array:
        """Prediction for noised latents.

        Args:
            latents: (B, h, w, in_channels), scaled; h and w multiples of 2**(levels - 1).
            timesteps: (B,) float32, in training steps.
            text: (B, L, context_width).
            control: one residual for each skip, shallow to deep, and one for the middle, of the shapes that
                `control_shapes` gives; None adds nothing.
        Returns:
            (B, h, w, out_channels) float32.
        Raises:
            ValueError: if `control` has another number of residuals.
        """
        skips, h, time = self.encoder(latents, timesteps, text)
        if control is not None:
            if len(control) != len(skips) + 1:
                raise ValueError(f"{len(control)} control residuals; this UNet takes {len(skips) + 1}")
            *skips, h = [x + residual.astype(x.dtype) for x, residual in zip([*skips, h], control)]
        for level in reversed(range(self.levels)):
            stage = self.up[str(level)]
            for i in range(self.res_blocks):
                h = choices.block(stage[f"res_{i}"])(jnp.concatenate([h, skips.pop()], axis=-1), time)
                if f"attention_{i}" in stage:
                    h = choices.block(stage[f"attention_{i}"])(h, text)
            if "upsample" in stage:
                h = stage["upsample"](upsample(h))
        return self.conv_out(jax.nn.silu(self.norm_out(h))).astype(jnp.float32)


class Encoder(nnx.Module):
    """The half of the UNet that narrows, and its middle; CapFace has one of its own."""

    def __init__(self, cfg: UNetConfig, dtype, *, rngs: nnx.Rngs):
        self.channels = cfg.channels
        self.levels = len(cfg.multipliers)
        self.res_blocks = cfg.res_blocks
        self.time_1 = linear(cfg.channels, 4 * cfg.channels, dtype=dtype, rngs=rngs)
        self.time_2 = linear(4 * cfg.channels, 4 * cfg.channels, dtype=dtype, rngs=rngs)
        self.conv_in = conv(cfg.in_channels, cfg.channels, dtype=dtype, rngs=rngs)
        width = cfg.channels
        self.down = nnx.Dict({})
        for level, multiplier in enumerate(cfg.multipliers):
            stage = nnx.Dict({})
            for i in range(cfg.res_blocks):
                stage[f"res_{i}"] = _res_block(width, cfg.channels * multiplier, cfg, dtype, rngs)
                width = cfg.channels * multiplier
                if 2**level in cfg.attention_downsamplings:
                    stage[f"attention_{i}"] = _attention(width, cfg, dtype, rngs)
            if level < self.levels - 1:
                stage["downsample"] = conv(width, width, stride=2, dtype=dtype, rngs=rngs)
            self.down[str(level)] = stage
        self.middle = nnx.Dict({
            "res_1": _res_block(width, width, cfg, dtype, rngs),
            "attention": _attention(width, cfg, dtype, rngs),
            "res_2": _res_block(width, width, cfg, dtype, rngs),
        })

    def __call__(
        self, latents: jax.Array, timesteps: jax.Array, context: jax.Array, hint: jax.Array | None = None
    ) -> tuple[list[jax.Array], jax.Array, jax.Array]:
        """Features at every level.

        latents, timesteps, context as in `UNet`; hint (B, h, w, channels) is added after the first convolution
        → skips (shallow to deep, `skip_widths` channels), middle features, timestep embedding (B, 4·channels).
        """
        time = self.time_2(jax.nn.silu(self.time_1(timestep_embedding(timesteps, self.channels))))
        h = self.conv_in(latents)
        if hint is not None:
            h = h + hint.astype(h.dtype)
        skips = [h]
        for level in range(self.levels):
            stage = self.down[str(level)]
            for i in range(self.res_blocks):
                h = choices.block(stage[f"res_{i}"])(h, time)
                if f"attention_{i}" in stage:
                    h = choices.block(stage[f"attention_{i}"])(h, context)
                skips.append(h)
            if "downsample" in stage:
                h = stage["downsample"](h)
                skips.append(h)
        h = choices.block(self.middle["res_1"])(h, time)
        h = choices.block(self.middle["attention"])(h, context)
        h = choices.block(self.middle["res_2"])(h, time)
        return skips, h, time


def skip_widths(cfg: UNetConfig) -> list[int]:
    """Channels of the features that skip from the encoder to the decoder, shallow to deep."""
    widths = [cfg.channels]
    for level, multiplier in enumerate(cfg.multipliers):
        last = level == len(cfg.multipliers) - 1
        widths += [cfg.channels * multiplier] * (cfg.res_blocks + (0 if last else 1))
    return widths


def control_shapes(cfg: UNetConfig, height: int, width: int) -> list[tuple[int, int, int]]:
    """(height, width, channels) of each control residual for latents of height × width: the skips, then the middle."""
    sizes = [0]
    for level in range(len(cfg.multipliers)):
        sizes += [level] * cfg.res_blocks + ([level + 1] if level < len(cfg.multipliers) - 1 else [])
    channels = skip_widths(cfg)
    return [(height >> s, width >> s, c) for s, c in zip([*sizes, sizes[-1]], [*channels, channels[-1]])]


def _res_block(inputs: int, outputs: int, cfg: UNetConfig, dtype, rngs: nnx.Rngs) -> ResBlock:
    return ResBlock(
        inputs, outputs, groups=cfg.groups, eps=1e-5, dtype=dtype, rngs=rngs, time_width=4 * cfg.channels, zero=True
    )


def _attention(width: int, cfg: UNetConfig, dtype, rngs: nnx.Rngs) -> TransformerBlock:
    return TransformerBlock(width, cfg.context_width, cfg.heads, groups=cfg.groups, dtype=dtype, rngs=rngs)
