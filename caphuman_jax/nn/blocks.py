"""Residual and transformer blocks of latent diffusion (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from caphuman_jax.nn import fp8, fused
from caphuman_jax.nn.attention import attention
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import GroupNorm, LayerNorm, conv, linear
from caphuman_jax.nn.typing import Rngs

KeysValues = tuple[Array, Array]


class RegionKeysValues(NamedTuple):
    """The keys and values of R texts of S tokens each, and how much each position takes of each.

    Attributes:
        keys, values: (kB, R·S, width), the texts one after another.
        weights: (B, R, L) float32, which sum to 1 over the texts; the same for all k contexts of a
            picture.
    """

    keys: Array
    values: Array
    weights: Array


class ResBlock(nnx.Module):
    """norm, SiLU, conv; plus the timestep; norm, SiLU, conv; plus the input.

    Args:
        time_width: width of the timestep embedding; None (in the VAE): the block does not see the
        time.
        zero: the last convolution starts at zero, so that the block starts as its shortcut.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        groups: int,
        eps: float,
        compute: ComputeConfig,
        rngs: Rngs,
        time_width: int | None = None,
        zero: bool = False,
    ):
        self.norm_1 = GroupNorm(inputs, groups, eps, compute=compute)
        self.conv_1 = conv(inputs, outputs, compute=compute, rngs=rngs)
        self.time = (
            None if time_width is None else linear(time_width, outputs, compute=compute, rngs=rngs)
        )
        self.norm_2 = GroupNorm(outputs, groups, eps, compute=compute)
        self.conv_2 = conv(outputs, outputs, compute=compute, rngs=rngs, zero=zero)
        self.shortcut = (
            None if inputs == outputs else linear(inputs, outputs, compute=compute, rngs=rngs)
        )

    def time_bias(self, time_embeddings: Float[Array, "b e"]) -> Float[Array, "b c"]:
        """Timestep embeddings (B, time_width) → what they add to the block's features, (B,
        outputs). Only for blocks with a `time_width`.
        """
        assert self.time is not None
        return self.time(jax.nn.silu(time_embeddings))

    def __call__(
        self, x: Float[Array, "b h w c"], time_bias: Float[Array, "n o"] | None = None
    ) -> Float[Array, "b h w o"]:
        """x (B, H, W, inputs), time_bias (n, outputs), n dividing B → (B, H, W, outputs)."""
        h = self.conv_1(self.norm_1(x, silu=True))
        if time_bias is not None:
            h = h + repeated(time_bias, h.shape[0])[:, None, None]
        h = self.conv_2(self.norm_2(h, silu=True))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """Queries from x, keys and values from a context (x itself for self-attention); no biases
    before the output.
    """

    def __init__(
        self,
        width: int,
        cross_attention_dim: int,
        heads: int,
        *,
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        self.heads = heads
        self.compute = compute
        self.query = linear(width, width, use_bias=False, compute=compute, rngs=rngs)
        self.key = linear(cross_attention_dim, width, use_bias=False, compute=compute, rngs=rngs)
        self.value = linear(cross_attention_dim, width, use_bias=False, compute=compute, rngs=rngs)
        self.out = linear(width, width, compute=compute, rngs=rngs)

    def keys_values(self, context: Float[Array, "b s d"]) -> KeysValues:
        """Context (B, S, cross_attention_dim) → keys and values, (B, S, width) each."""
        return self.key(context), self.value(context)

    def __call__(
        self,
        x: Float[Array, "b l w"],
        context: Float[Array, "b s d"] | KeysValues | RegionKeysValues,
    ) -> Float[Array, "b l w"]:
        """x (B, L, width), context (B, S, cross_attention_dim) or its `keys_values` → (B, L,
        width). With regions, the weighted mean of the attention to each text.
        """
        if isinstance(context, RegionKeysValues):
            return self.out(self._by_region(self.query(x), context))
        key, value = context if isinstance(context, tuple) else self.keys_values(context)
        return self.out(attention(self.query(x), key, value, self.heads, compute=self.compute))

    def _by_region(
        self, query: Float[Array, "b l w"], context: RegionKeysValues
    ) -> Float[Array, "b l w"]:
        regions = context.weights.shape[1]
        texts = zip(*(jnp.split(x, regions, axis=1) for x in (context.keys, context.values)))
        weights = repeated(context.weights, query.shape[0]).astype(query.dtype)
        parts = [
            weights[:, number, :, None]
            * attention(query, key, value, self.heads, compute=self.compute)
            for number, (key, value) in enumerate(texts)
        ]
        return sum(parts[1:], parts[0])


class FeedForward(nnx.Module):
    """Two layers with a gated exact GELU between them (GEGLU, arXiv 2002.05202)."""

    def __init__(self, width: int, *, compute: ComputeConfig, rngs: Rngs):
        self.up = linear(width, 8 * width, compute=compute, rngs=rngs)
        self.down = linear(4 * width, width, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        """(B, L, width) → the same."""
        kernel, half = self.up.kernel[...], fused.is_half(x.dtype)
        if half and not isinstance(kernel, fp8.Fp8):
            assert self.up.bias is not None
            kernel, bias = kernel.astype(x.dtype), self.up.bias[...].astype(x.dtype)
            return self.down(fused.geglu_layer(x, kernel, bias))
        value, gate = jnp.split(self.up(x), 2, axis=-1)
        if half:
            return self.down(fused.geglu(value, gate))
        return self.down(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """On a picture's positions: self-attention, cross-attention to the context, feed-forward; the
    whole starts as identity.
    """

    def __init__(
        self,
        width: int,
        cross_attention_dim: int,
        heads: int,
        *,
        groups: int,
        compute: ComputeConfig,
        rngs: Rngs,
    ):
        self.norm = GroupNorm(width, groups, eps=1e-6, compute=compute)
        self.proj_in = linear(width, width, compute=compute, rngs=rngs)
        self.norm_1 = LayerNorm(width)
        self.self_attention = Attention(width, width, heads, compute=compute, rngs=rngs)
        self.norm_2 = LayerNorm(width)
        self.cross_attention = Attention(
            width, cross_attention_dim, heads, compute=compute, rngs=rngs
        )
        self.norm_3 = LayerNorm(width)
        self.feed_forward = FeedForward(width, compute=compute, rngs=rngs)
        self.proj_out = linear(width, width, compute=compute, rngs=rngs, zero=True)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "kb s d"] | KeysValues | RegionKeysValues,
    ) -> Float[Array, "kb h w c"]:
        """x (B, H, W, width), context (kB, S, cross_attention_dim) or its keys and values
        (`Attention.keys_values`), by region or not → (kB, H, W, width).

        With k > 1 each picture meets k contexts, those of all pictures lying together k times over:
        what comes before the cross-attention does not know the context and is computed once."""
        batch, height, width, channels = x.shape
        h = self.proj_in(self.norm(x)).reshape(batch, height * width, channels)
        normed = self.norm_1(h)
        h = h + self.self_attention(normed, normed)
        count = jax.tree.leaves(context)[0].shape[0]
        x, h = repeated(x, count), repeated(h, count)
        h = h + self.cross_attention(self.norm_2(h), context)
        h = h + self.feed_forward(self.norm_3(h))
        return x + self.proj_out(h.reshape(x.shape))


def repeated(x: Float[Array, " b *rest"], count: int) -> Float[Array, " {count} *rest"]:
    """x (B, …) → (count, …): the whole batch again and again; count a multiple of B."""
    if x.shape[0] == count:
        return x
    return jnp.broadcast_to(x[None], (count // x.shape[0], *x.shape)).reshape(count, *x.shape[1:])
