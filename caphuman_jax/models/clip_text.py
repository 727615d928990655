"""CLIP's text encoder (arXiv 2103.00020); ViT-L/14's by default."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from caphuman_jax.config import TextConfig
from caphuman_jax.nn import initializers
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.embeddings import rows
from caphuman_jax.nn.layers import LayerNorm, linear
from caphuman_jax.nn.transformer import Transformer
from caphuman_jax.nn.typing import Rngs


class TextEncoder(nnx.Module):
    """Token ids → one vector a token for the UNet's cross-attention, and one for the whole prompt.

    With `cfg.embed_width`, token embeddings are stored that narrow and projected to `cfg.width`.
    """

    def __init__(self, cfg: TextConfig, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs):
        narrow = cfg.embed_width or cfg.width
        normal = initializers.normal(0.02)
        self.tokens = nnx.Embed(
            cfg.vocabulary, narrow, dtype=compute.dtype, embedding_init=normal, rngs=rngs
        )
        self.widen = (
            None
            if narrow == cfg.width
            else linear(narrow, cfg.width, use_bias=False, compute=compute, rngs=rngs)
        )
        self.positions = nnx.Param(normal(rngs.params(), (cfg.length, cfg.width), jnp.float32))
        self.transformer = Transformer(
            cfg.width,
            cfg.layers,
            cfg.heads,
            cfg.mlp_width,
            causal=True,
            activation=cfg.activation,
            compute=compute,
            rngs=rngs,
        )
        self.norm_out = LayerNorm(cfg.width)

    def __call__(
        self,
        token_ids: Int[Array, "b l"],
        embeddings: Float[Array, "e n"] | None = None,
        skip: int = 0,
    ) -> tuple[Float[Array, "b l w"], Float[Array, "b w"]]:
        """Encode prompts.

        Args:
            token_ids: (B, L) int32, L at most `cfg.length`: start token, the prompt, the end token
                (the highest id of the vocabulary), padding.
            embeddings: (E, narrow) added embeddings, which ids from the vocabulary's end on stand
                for.
            skip: how many of the last layers to leave out; the final norm stays.

        Returns:
            The last hidden state after the final norm (B, L, width), and the end token's
            (B, width). Both in the compute dtype.
        """
        table = self.tokens.embedding[...]
        if embeddings is None:
            x = rows(table, token_ids).astype(self.tokens.dtype)
        else:
            known = token_ids < table.shape[0]
            x = rows(table, jnp.where(known, token_ids, 0)).astype(self.tokens.dtype)
            added = rows(embeddings, jnp.where(known, 0, token_ids - table.shape[0]))
            x = jnp.where(known[..., None], x, added.astype(x.dtype))
            token_ids = jnp.where(known, token_ids, -1)
        if self.widen is not None:
            x = self.widen(x)
        x = x + self.positions[: token_ids.shape[1]].astype(x.dtype)[None]
        hidden = self.norm_out(self.transformer(x, skip))
        end = jnp.argmax(
            token_ids, axis=1
        )  # The first of them, where the padding is the end token too.
        return hidden, jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
