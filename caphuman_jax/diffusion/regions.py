"""Prompts of their own for parts of a picture: attention to the text of the scene and of each
person, by region.

Regions are bound hard while the layout forms: each position sees one text alone. From `bind_until`
on, only the deepest blocks of the UNet stay bound, which decide what is where; elsewhere a region
takes half of its own text and half of the scene's, so that no seams show. (Hard binding in the
middle blocks alone is DreamRenderer's, arXiv 2503.12885.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from caphuman_jax.config import UNetConfig
from caphuman_jax.models.unet import Context
from caphuman_jax.nn.blocks import RegionKeysValues
from caphuman_jax.nn.typing import Array

_OWN = 0.5  # share of its own text that a region takes where it is bound loosely
_MIDDLE = "middle"


class RegionWeights:
    """How much each position takes of each text, for every block of the UNet."""

    def __init__(self, masks: Float[Array, "b p h w"], cfg: UNetConfig):
        """
        Args:
            masks: (B, P, h, w) in [0, 1], the regions of P people at the latents' size; they do not
                overlap. The scene has the rest.
            cfg: of the UNet.
        """
        self.deepest = len(cfg.channel_multipliers) - 1
        self.hard, self.loose = [], []
        for level in range(self.deepest + 1):
            batch, people, height, width = masks.shape
            size = (batch, people, height >> level, width >> level)
            own = _shrunk(masks, 2**level).reshape(*size[:2], -1)
            scene = 1 - own.sum(axis=1, keepdims=True)
            shares = jnp.concatenate([scene, own], axis=1)
            # The first of equal shares: people before the scene.
            most = jnp.argmax(jnp.roll(shares, -1, axis=1), axis=1)
            hard = jax.nn.one_hot((most + 1) % (people + 1), people + 1, axis=1)
            self.hard.append(hard.astype(jnp.float32))
            self.loose.append(
                jnp.concatenate([1 - _OWN * own.sum(1, keepdims=True), _OWN * own], 1)
            )

    def bind(self, context: Context, bound: Bool[Array, ""]) -> Context:
        """The keys and values of the texts (scene, people) with the weights of one step.

        Args:
            context: of `UNet.encode_context`, of the texts one after another.
            bound: () whether all blocks are bound hard at this step.
        """

        def at(level: int, node: Any) -> Any:
            if isinstance(node, tuple):
                weights = self.hard[level]
                if level < self.deepest:
                    weights = jnp.where(bound, weights, self.loose[level])
                keys, values = node
                return RegionKeysValues(keys, values, weights)
            levels = {name: self.deepest if name == _MIDDLE else level for name in node}
            levels |= {name: int(name) for name in node if name.isdigit()}
            return {name: at(levels[name], node[name]) for name in node}

        return at(0, context)


def texts_of_regions(encode: Callable, regions: dict, texts: dict) -> dict[str, jax.Array]:
    """The texts that the UNet sees, each (B, (1 + P)·C·L, width): the scene's and the people's one
    after another; the empty one is the same for all.

    Args:
        encode: (token_ids (N, C·L), weights or None) → (N, C·L, width).
        regions: token_ids and weights (B, P, C·L) of the people's prompts.
        texts: {"prompt", "empty"}: the scene's, (B, C·L, width).
    """
    batch, people, length = regions["token_ids"].shape
    flat = lambda x: None if x is None else x.reshape(batch * people, length)
    own = encode(flat(regions["token_ids"]), flat(regions.get("weights")))
    prompt = jnp.concatenate([texts["prompt"], own.reshape(batch, people * length, -1)], axis=1)
    return {"prompt": prompt, "empty": jnp.tile(texts["empty"], (1, 1 + people, 1))}


def _shrunk(masks: Float[Array, "b p h w"], factor: int) -> Float[Array, "b p g v"]:
    """Masks (B, P, h, w) → (B, P, h / factor, w / factor), means of squares."""
    batch, people, height, width = masks.shape
    blocks = masks.reshape(batch, people, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(3, 5))
