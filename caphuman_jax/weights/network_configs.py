"""What the config.json files of diffusers and transformers say of a network, where the names and
shapes of its weights do not show it: numbers of heads, layers in use, activations.

A setting that is taken over changes the model's configuration; one that cannot be followed is
refused by its name, because the weights would fit and give wrong pictures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights.sources import Found, Source

_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""hidden_act of transformers → ours."""
_UNET: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}
_VAE: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "shift_factor": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
_CLIP: dict[str, tuple] = {"layer_norm_eps": (1e-5,)}
"""Setting → the values that can be followed; a setting that is not there has its default, which is
one of them."""


def follow(config: ModelConfig, chosen: Mapping[str, Source]) -> ModelConfig:
    """The configuration as the chosen sources describe their networks.

    Layers of CLIP's encoders beyond the number that their config.json uses are left out of what
    was found.

    Raises:
        ModelFolderError: a setting that cannot be followed.
    """
    parts: dict[str, Any] = {"text": config.text, "image_encoder": config.image_encoder}
    for network, source in chosen.items():
        described = source.described.get(network, {})
        if network == "unet":
            _check(source, "unet", described, _UNET | {"norm_num_groups": (config.unet.groups,)})
        elif network == "vae":
            _check(source, "vae", described, _VAE | {"norm_num_groups": (config.vae.groups,)})
        elif (part := parts.get(network)) is not None:
            _check(source, network, described, _CLIP)
            parts[network] = dataclasses.replace(part, **_clip(source, network, described, part))
    return dataclasses.replace(config, **parts)


def _check(source: Source, network: str, described: Mapping, allowed: Mapping[str, tuple]) -> None:
    for name, values in allowed.items():
        value = described.get(name, values[0])
        if isinstance(value, bool) != isinstance(values[0], bool) or value not in values:
            known = " or ".join(map(str, values))
            raise ModelFolderError(
                f"{source.path}: config.json of its {network} says {name} = {value!r}, which "
                f"cannot be followed here (only {known})"
            )


def _clip(source: Source, network: str, described: Mapping, part: Any) -> dict[str, Any]:
    """Fields of `TextConfig` or `ImageEncoderConfig`."""
    found = source.networks[network]
    there = 1 + max(map(_layer, found.keys), default=-1)
    layers = _whole(source, network, described, "num_hidden_layers", there)
    changes: dict[str, Any] = {
        "layers": layers or part.layers,
        "heads": _whole(source, network, described, "num_attention_heads", part.heads),
    }
    act = described.get("hidden_act")
    if act is not None and act not in _ACTIVATIONS:
        raise ModelFolderError(
            f"{source.path}: config.json of its {network} says hidden_act = {act!r}, which cannot "
            f"be followed here (only {', '.join(_ACTIVATIONS)})"
        )
    if act is not None:
        changes["activation"] = _ACTIVATIONS[act]
    beyond = [name for name in found.keys if _layer(name) >= layers]
    for name in beyond:
        key = found.keys.pop(name)
        source.extras.setdefault("layers that its config.json does not use", []).append(key)
    if network == "text":
        changes |= _length(found, part)
    return changes


def _length(found: Found, part: Any) -> dict[str, int]:
    """How many tokens a text encoder takes: by the shape of its position embeddings."""
    key = next((key for name, key in found.keys.items() if "position_embedding" in name), None)
    shape = found.checkpoint.shape(key) if key else ()
    return {"length": shape[0]} if len(shape) == 2 and shape[1] == part.width else {}


def _layer(name: str) -> int:
    found = re.search(r"\bencoder\.layers\.(\d{1,3})\.", name)
    return int(found[1]) if found else -1


def _whole(source: Source, network: str, described: Mapping, name: str, default: int) -> int:
    value = described.get(name, default)
    if type(value) is not int or not 1 <= value <= 256:
        if name not in described:
            return default
        raise ModelFolderError(
            f"{source.path}: config.json of its {network} says {name} = {value!r}; it must be a "
            f"whole number from 1 to 256"
        )
    return value
