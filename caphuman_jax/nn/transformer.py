"""CLIP's transformer (Radford et al. 2021, arXiv 2103.00020): norms come first."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from caphuman_jax.nn.attention import attention
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import ACTIVATIONS, LayerNorm, linear
from caphuman_jax.nn.typing import Rngs


class Transformer(nnx.Module):
    """A stack of `TransformerLayer`s."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        *,
        causal: bool,
        activation: str = "quick_gelu",
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        self.layers = nnx.Dict(
            {
                str(i): TransformerLayer(
                    width,
                    heads,
                    mlp_width,
                    causal=causal,
                    activation=activation,
                    compute=compute,
                    rngs=rngs,
                )
                for i in range(layers)
            }
        )

    def __call__(self, x: Float[Array, "b l w"], skip: int = 0) -> Float[Array, "b l w"]:
        """(B, L, width) → the same, without the last `skip` layers."""
        for i in range(len(self.layers) - skip):
            x = self.layers[str(i)](x)
        return x


class TransformerLayer(nnx.Module):
    """Self-attention, then two layers with an activation between them (`layers.ACTIVATIONS`), each
    added to its input.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        causal: bool,
        activation: str = "quick_gelu",
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        self.heads = heads
        self.compute = compute
        self.causal = causal
        self.activation = activation
        self.norm_1 = LayerNorm(width)
        self.query = linear(width, width, compute=compute, rngs=rngs)
        self.key = linear(width, width, compute=compute, rngs=rngs)
        self.value = linear(width, width, compute=compute, rngs=rngs)
        self.out = linear(width, width, compute=compute, rngs=rngs)
        self.norm_2 = LayerNorm(width)
        self.up = linear(width, mlp_width, compute=compute, rngs=rngs)
        self.down = linear(mlp_width, width, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        """(B, L, width) → the same."""
        h = self.norm_1(x)
        x = x + self.out(
            attention(
                self.query(h),
                self.key(h),
                self.value(h),
                self.heads,
                causal=self.causal,
                compute=self.compute,
            )
        )
        return x + self.down(ACTIVATIONS[self.activation](self.up(self.norm_2(x))))
