"""Identity tokens: what CapFace's cross-attention sees of a person."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from caphuman_jax.config import IdentityConfig
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import linear
from caphuman_jax.nn.typing import Rngs


class IdentityProjector(nnx.Module):
    """Brings image tokens and the recognition vector to the width of the UNet's context."""

    def __init__(
        self,
        cfg: IdentityConfig,
        width: int,
        compute: ComputeConfig = ComputeConfig(),
        *,
        rngs: Rngs,
    ):
        self.image = linear(cfg.image_width, width, compute=compute, rngs=rngs)
        self.recognition = linear(cfg.recognition_width, width, compute=compute, rngs=rngs)

    def __call__(
        self, image_tokens: Float[Array, "b n w"], recognition: Float[Array, "b r"]
    ) -> Float[Array, "b n+1 d"]:
        """image_tokens (B, N, image_width), recognition (B, recognition_width), L2-normalized
        → (B, N + 1, width): the image tokens, then the recognition token."""
        return jnp.concatenate(
            [self.image(image_tokens), self.recognition(recognition)[:, None]], axis=1
        )


def drop_identity(
    tokens: Float[Array, "b n d"], timesteps: Float[Array, " b"], tau: float | Array
) -> Float[Array, "b n d"]:
    """Identity dropout in time: tokens are multiplied by 0 where the timestep is above `tau`; tau 0
    keeps them always.

    tokens (B, N, D), timesteps (B,) float32, tau a number in training steps → (B, N, D).
    """
    return tokens * keeps_identity(timesteps, tau)[:, None, None].astype(tokens.dtype)


def keeps_identity(timesteps: Float[Array, " s"], tau: float | Array) -> Bool[Array, " s"]:
    """At which of the timesteps, float32, identity tokens are kept: bool of the same shape."""
    tau = jnp.asarray(tau, jnp.float32)
    return (timesteps <= tau) | (tau == 0)
