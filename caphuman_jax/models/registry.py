"""The networks by name, and how to build them from a configuration; see `models.network`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx

from caphuman_jax.config import ModelConfig
from caphuman_jax.models import deca_encoder, face_parsing, facenet, mtcnn
from caphuman_jax.models.capface import CapFace
from caphuman_jax.models.clip_image import ImageEncoder
from caphuman_jax.models.clip_text import TextEncoder
from caphuman_jax.models.controlnet import ControlNet
from caphuman_jax.models.identity_projector import IdentityProjector
from caphuman_jax.models.network import Network, abstract_network, split
from caphuman_jax.models.unet import UNet
from caphuman_jax.models.vae import VAE
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import HostRngs

TRAINABLE = ("capface", "identity")
"""The networks that CapHuman trains on a frozen base."""

OPTIONAL = ("facenet", "face_parsing", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet", "deca_encoder")
"""Networks of one fixed form that a model folder may hold: what its identities and heads were
measured with in training.
"""


def abstract(
    cfg: ModelConfig,
    compute: ComputeConfig = ComputeConfig(),
    *,
    only: Collection[str] | None = None,
) -> dict[str, Network]:
    """Every network's (graphdef, params) with `jax.ShapeDtypeStruct` leaves; nothing is allocated
    or computed.

    Keys: unet, capface, identity, vae, text; image_encoder if the configuration has one;
    controlnet_NAME for each of its ControlNets. `only` picks some of them, and may name those of
    OPTIONAL. Parameters are float32 whatever the compute dtype is."""
    makers = _makers(cfg, compute) | (
        _optional(compute) if only and set(OPTIONAL) & set(only) else {}
    )
    return {
        name: abstract_network(make)
        for name, make in makers.items()
        if only is None or name in only
    }


def init(
    cfg: ModelConfig,
    key: jax.Array,
    compute: ComputeConfig = ComputeConfig(),
    *,
    only: Collection[str] | None = None,
) -> dict[str, Network]:
    """Every network's (graphdef, params), or those of `only`, freshly initialized; the same key
    gives the same parameters.

    The numbers are drawn on the host (nn/initializers.py says why), so this cannot be called inside
    a compiled function."""
    networks = {}
    for number, (name, make) in enumerate(_makers(cfg, compute).items()):
        if only is not None and name not in only:
            continue
        networks[name] = split(make(HostRngs(jax.random.fold_in(key, number))))
    return networks


def count(params: dict) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _makers(cfg: ModelConfig, compute: ComputeConfig) -> dict[str, Callable[[Any], nnx.Module]]:
    makers: dict[str, Callable[[Any], nnx.Module]] = {
        "unet": lambda rngs: UNet(cfg.unet, compute, rngs=rngs),
        "capface": lambda rngs: CapFace(cfg.control_unet, cfg.capface, compute, rngs=rngs),
        "identity": lambda rngs: IdentityProjector(
            cfg.identity, cfg.unet.cross_attention_dim, compute, rngs=rngs
        ),
        "vae": lambda rngs: VAE(cfg.vae, compute, rngs=rngs),
        "text": lambda rngs: TextEncoder(cfg.text, compute, rngs=rngs),
    }
    if (image_encoder := cfg.image_encoder) is not None:
        makers["image_encoder"] = lambda rngs: ImageEncoder(image_encoder, compute, rngs=rngs)
    for name in cfg.controlnets:
        makers[f"controlnet_{name}"] = lambda rngs: ControlNet(
            cfg.control_unet, cfg.controlnet, compute, rngs=rngs
        )
    return makers


def _optional(compute) -> dict[str, Callable[[Any], nnx.Module]]:
    return {
        "facenet": lambda rngs: facenet.FaceNet(compute, rngs=rngs),
        "face_parsing": lambda rngs: face_parsing.BiSeNet(compute, rngs=rngs),
        "mtcnn_pnet": lambda rngs: mtcnn.ProposalNet(rngs=rngs),
        "mtcnn_rnet": lambda rngs: mtcnn.RefinementNet(rngs=rngs),
        "mtcnn_onet": lambda rngs: mtcnn.OutputNet(rngs=rngs),
        "deca_encoder": lambda rngs: deca_encoder.DecaEncoder(rngs=rngs),
    }
