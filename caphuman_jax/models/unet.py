"""The denoising UNet of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), Stable Diffusion
1's by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from caphuman_jax.config import UNetConfig
from caphuman_jax.nn.blocks import ResBlock, TransformerBlock, repeated
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.embeddings import timestep_embedding
from caphuman_jax.nn.layers import GroupNorm, conv, convolve_upsampled, linear
from caphuman_jax.nn.typing import Rngs

TimeBiases = dict[str, Any]
"""What each residual block adds for a timestep (`ResBlock.time_bias`): arrays (S, channels), nested
as the blocks are.
"""
Context = dict[str, Any]
"""The keys and values of each cross-attention (`Attention.keys_values`), nested as the blocks are.
"""
Control = Sequence[Array]


class UNet(nnx.Module):
    """Predicts the noise (or v) in latents from the timestep and text tokens, steered by control
    residuals.
    """

    def __init__(self, cfg: UNetConfig, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs):
        self.compute = compute
        self.levels = len(cfg.channel_multipliers)
        self.blocks_per_level = cfg.blocks_per_level + 1
        self.encoder = Encoder(cfg, compute, rngs=rngs)
        skips = skip_widths(cfg)
        width = skips[-1]
        self.up = nnx.Dict({})
        for level in reversed(range(self.levels)):
            outputs = cfg.channels * cfg.channel_multipliers[level]
            stage = nnx.Dict({})
            for i in range(self.blocks_per_level):
                stage[f"res_{i}"] = _res_block(width + skips.pop(), outputs, cfg, compute, rngs)
                width = outputs
                if 2**level in cfg.attention_resolutions:
                    stage[f"attention_{i}"] = _attention(width, cfg, compute, rngs)
            if level > 0:
                stage["upsample"] = conv(width, width, compute=compute, rngs=rngs)
            self.up[str(level)] = stage
        self.norm_out = GroupNorm(width, cfg.groups, compute=compute)
        self.conv_out = conv(width, cfg.out_channels, compute=compute, rngs=rngs, zero=True)

    def embed_times(self, timesteps: Float[Array, " s"]) -> TimeBiases:
        """What every residual block adds for timesteps (S,) float32; needed at all steps, so
        computed once before them.
        """
        time = self.encoder.embed_time(timesteps)
        return {"encoder": self.encoder.time_biases(time), "up": _time_biases_of(self.up, time)}

    def encode_context(self, text: Float[Array, "b l d"]) -> Context:
        """Keys and values of every cross-attention for text (B, L, cross_attention_dim); the same
        at all steps."""
        return {"encoder": self.encoder.encode_context(text), "up": _keys_values(self.up, text)}

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Float[Array, " n"] | TimeBiases,
        text: Float[Array, "kb l d"] | Context,
        control: Control | None = None,
    ) -> Float[Array, "kb h w o"]:
        """Prediction for noised latents.

        Args:
            latents: (B, h, w, in_channels), scaled; h and w multiples of 2**(levels - 1).
            timesteps: (B,) float32, in training steps; or what `embed_times` made of them or of one
            for all.
            text: (kB, L, cross_attention_dim), or what `encode_context` made of it. With k > 1 each
                picture meets k texts, the pictures together k times over; what does not depend on
                the text yet is computed once.
            control: one residual for each skip, shallow to deep, and one for the middle, of the
                shapes that `control_shapes` gives, for B or kB pictures; None adds nothing.
        Returns:
            (kB, h, w, out_channels) float32.
        Raises:
            ValueError: if `control` has another number of residuals.
        """
        return self.with_features(latents, timesteps, text, control, blocks=0)[0]

    def with_features(
        self, latents, timesteps, text, control: Control | None = None, *, blocks: int
    ) -> tuple[jax.Array, jax.Array]:
        """Predict as a call does, and return the features that the last blocks begin with, too.

        The features are nearly the same at the next step, where `from_cached_features` can start
        from them (DeepCache, arXiv 2312.00858).

        Args:
            latents, timesteps, text, control: As in a call.
            blocks: How many of the decoder's last blocks come after the features; at most those of
                its last level.

        Returns:
            The prediction, and the features (kB, h, w, C).
        """
        time_biases = self._time_biases(timesteps)
        skips, h = self.encoder(latents, time_biases["encoder"], _at(text, "encoder"))
        if control is not None and len(control) != len(skips) + 1:
            raise ValueError(f"{len(control)} control residuals; this UNet takes {len(skips) + 1}")
        *skips, h = _added([*skips, h], control)
        features = self._decode(h, skips, time_biases, text, 0, len(skips) - blocks)
        return self._finish(features, skips, time_biases, text, len(skips) - blocks), features

    def from_cached_features(
        self,
        cached_features: Float[Array, "kb h w f"],
        latents,
        timesteps,
        text,
        control: Control | None = None,
        *,
        blocks: int,
    ) -> jax.Array:
        """Predict from the features of another step: only the last `blocks` blocks run, and what
        skips to them.

        Args:
            cached_features: (kB, h, w, C) of `with_features`.
            latents, timesteps, text: As in a call.
            control: The first `blocks` residuals; the others are part of the features.
            blocks: As in `with_features`.

        Returns:
            The prediction (kB, h, w, out_channels) float32.
        """
        time_biases = self._time_biases(timesteps)
        # Only the shallow skips are used; the compiler drops the rest of the encoder.
        skips, _ = self.encoder(latents, time_biases["encoder"], _at(text, "encoder"))
        return self._finish(
            cached_features,
            _added(skips[:blocks], control),
            time_biases,
            text,
            self.levels * self.blocks_per_level - blocks,
        )

    def _time_biases(self, timesteps):
        return timesteps if isinstance(timesteps, dict) else self.embed_times(timesteps)

    def _finish(self, h, skips, time_biases, text, start):
        h = self._decode(h, skips, time_biases, text, start, self.levels * self.blocks_per_level)
        return self.conv_out(self.norm_out(h, silu=True)).astype(jnp.float32)

    def _decode(self, h, skips, time_biases, text, start, stop):
        """Blocks start … stop - 1 of the decoder, deep to shallow."""
        places = [
            (str(level), i)
            for level in reversed(range(self.levels))
            for i in range(self.blocks_per_level)
        ]
        for number, (level, i) in enumerate(places[start:stop], start):
            stage, res, attend = self.up[level], f"res_{i}", f"attention_{i}"
            skip = repeated(skips[len(places) - 1 - number], h.shape[0])
            h = self.compute.remat_block(stage[res])(
                jnp.concatenate([h, skip], axis=-1), time_biases["up"][level][res]
            )
            if attend in stage:
                h = self.compute.remat_block(stage[attend])(h, _at(text, "up", level, attend))
            if "upsample" in stage and i == self.blocks_per_level - 1:
                h = convolve_upsampled(stage["upsample"], h, self.compute)
        return h


class Encoder(nnx.Module):
    """The half of the UNet that narrows, and its middle; CapFace has one of its own."""

    def __init__(self, cfg: UNetConfig, compute: ComputeConfig, *, rngs: Rngs):
        self.channels = cfg.channels
        self.compute = compute
        self.levels = len(cfg.channel_multipliers)
        self.blocks_per_level = cfg.blocks_per_level
        self.time_1 = linear(cfg.channels, 4 * cfg.channels, compute=compute, rngs=rngs)
        self.time_2 = linear(4 * cfg.channels, 4 * cfg.channels, compute=compute, rngs=rngs)
        self.conv_in = conv(cfg.in_channels, cfg.channels, compute=compute, rngs=rngs)
        width = cfg.channels
        self.down = nnx.Dict({})
        for level, multiplier in enumerate(cfg.channel_multipliers):
            stage = nnx.Dict({})
            for i in range(cfg.blocks_per_level):
                stage[f"res_{i}"] = _res_block(width, cfg.channels * multiplier, cfg, compute, rngs)
                width = cfg.channels * multiplier
                if 2**level in cfg.attention_resolutions:
                    stage[f"attention_{i}"] = _attention(width, cfg, compute, rngs)
            if level < self.levels - 1:
                stage["downsample"] = conv(width, width, stride=2, compute=compute, rngs=rngs)
            self.down[str(level)] = stage
        self.middle = nnx.Dict(
            {
                "res_1": _res_block(width, width, cfg, compute, rngs),
                "attention": _attention(width, cfg, compute, rngs),
                "res_2": _res_block(width, width, cfg, compute, rngs),
            }
        )

    def embed_times(self, timesteps: Float[Array, " s"]) -> TimeBiases:
        """What every residual block adds for timesteps (S,) float32."""
        return self.time_biases(self.embed_time(timesteps))

    def embed_time(self, timesteps: Float[Array, " s"]) -> Float[Array, "s e"]:
        """Timesteps (S,) float32 → embedding (S, 4·channels)."""
        return self.time_2(jax.nn.silu(self.time_1(timestep_embedding(timesteps, self.channels))))

    def time_biases(self, time: Float[Array, "s e"]) -> TimeBiases:
        """An embedding → what every residual block adds for it."""
        return {
            "down": _time_biases_of(self.down, time),
            **_time_biases_of({"middle": self.middle}, time),
        }

    def encode_context(self, context: Float[Array, "b l d"]) -> Context:
        """Keys and values of every cross-attention for a context (B, L, cross_attention_dim)."""
        return {
            "down": _keys_values(self.down, context),
            **_keys_values({"middle": self.middle}, context),
        }

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Float[Array, " n"] | TimeBiases,
        context: Float[Array, "kb l d"] | Context,
        hint: Float[Array, "b h w f"] | None = None,
    ) -> tuple[list[Array], Array]:
        """Features at every level.

        latents, timesteps, context as in `UNet`; hint (B, h, w, channels) is added after the first
        convolution → skips (shallow to deep, `skip_widths` channels) and middle features. Those
        from before the first cross-attention are of B pictures, the others of kB."""
        time_biases = timesteps if isinstance(timesteps, dict) else self.embed_times(timesteps)
        h = self.conv_in(latents)
        if hint is not None:
            h = h + hint.astype(h.dtype)
        skips = [h]
        for level in range(self.levels):
            stage, place = self.down[str(level)], ("down", str(level))
            for i in range(self.blocks_per_level):
                h = self.compute.remat_block(stage[f"res_{i}"])(
                    h, _at(time_biases, *place, f"res_{i}")
                )
                if f"attention_{i}" in stage:
                    h = self.compute.remat_block(stage[f"attention_{i}"])(
                        h, _at(context, *place, f"attention_{i}")
                    )
                skips.append(h)
            if "downsample" in stage:
                h = stage["downsample"](h)
                skips.append(h)
        h = self.compute.remat_block(self.middle["res_1"])(h, time_biases["middle"]["res_1"])
        h = self.compute.remat_block(self.middle["attention"])(
            h, _at(context, "middle", "attention")
        )
        h = self.compute.remat_block(self.middle["res_2"])(h, time_biases["middle"]["res_2"])
        return skips, h


def skip_widths(cfg: UNetConfig) -> list[int]:
    """Channels of the features that skip from the encoder to the decoder, shallow to deep."""
    widths = [cfg.channels]
    for level, multiplier in enumerate(cfg.channel_multipliers):
        last = level == len(cfg.channel_multipliers) - 1
        widths += [cfg.channels * multiplier] * (cfg.blocks_per_level + (0 if last else 1))
    return widths


def control_shapes(cfg: UNetConfig, height: int, width: int) -> list[tuple[int, int, int]]:
    """(height, width, channels) of each control residual for latents of height × width: the skips,
    then the middle.
    """
    sizes = [0]
    for level in range(len(cfg.channel_multipliers)):
        sizes += [level] * cfg.blocks_per_level + (
            [level + 1] if level < len(cfg.channel_multipliers) - 1 else []
        )
    channels = skip_widths(cfg)
    return [
        (height >> s, width >> s, c) for s, c in zip([*sizes, sizes[-1]], [*channels, channels[-1]])
    ]


def _time_biases_of(stages: Mapping[str, Mapping[str, nnx.Module]], time: jax.Array) -> TimeBiases:
    return {
        key: {
            name: block.time_bias(time)
            for name, block in stage.items()
            if isinstance(block, ResBlock)
        }
        for key, stage in stages.items()
    }


def _keys_values(stages: Mapping[str, Mapping[str, nnx.Module]], context: jax.Array) -> Context:
    return {
        key: {
            name: block.cross_attention.keys_values(context)
            for name, block in stage.items()
            if isinstance(block, TransformerBlock)
        }
        for key, stage in stages.items()
    }


def _at(tree: Any, *place: str) -> Any:
    """What lies at a place of a prepared context; an array of tokens is the same for
    every place.
    """
    for key in place:
        tree = tree[key] if isinstance(tree, dict) else tree
    return tree


def _added(features: Sequence[jax.Array], control: Control | None) -> list[jax.Array]:
    """Features and residuals, of B or kB pictures each, summed."""
    if control is None:
        return list(features)
    count = lambda x, residual: max(x.shape[0], residual.shape[0])
    return [
        repeated(x, count(x, r)) + repeated(r, count(x, r)).astype(x.dtype)
        for x, r in zip(features, control)
    ]


def _res_block(
    inputs: int, outputs: int, cfg: UNetConfig, compute: ComputeConfig, rngs: Rngs
) -> ResBlock:
    return ResBlock(
        inputs,
        outputs,
        groups=cfg.groups,
        eps=1e-5,
        compute=compute,
        rngs=rngs,
        time_width=4 * cfg.channels,
        zero=True,
    )


def _attention(width: int, cfg: UNetConfig, compute: ComputeConfig, rngs: Rngs) -> TransformerBlock:
    return TransformerBlock(
        width, cfg.cross_attention_dim, cfg.heads, groups=cfg.groups, compute=compute, rngs=rngs
    )
