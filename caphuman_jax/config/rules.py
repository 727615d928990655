"""What a configuration may say: the type and range of each entry, and which entries have to agree.

`config.ModelConfig.from_dict` and the training configurations use it, so that a wrong number is one
line and not an error from deep inside of a network."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

Range = tuple[float, float]
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

MODEL_RANGES: Mapping[str, Range] = {
    "beta_start": (1e-8, 0.5),
    "beta_end": (1e-8, 0.999),
    "blocks_per_level": (1, 16),
    "channel_multipliers": (1, 64),
    "eta": (0, 1),
    "guidance_scale": (0, 100),
    "guidance_rescale": (0, 1),
    "head_guidance": (0, 100),
    "identity_guidance": (0, 100),
    "image_channels": (3, 3),
    "image_size": (8, 8192),
    "layers": (1, 256),
    "num_timesteps": (1, 100_000),
    "patch": (1, 64),
    "scaling_factor": (1e-6, 1e6),
    "vocabulary": (2, 10_000_000),
}
"""Smallest and largest value of entries by name; other numbers are from 1 to 65,536."""
_LARGEST = 65_536
_CHOICES = {
    "activation": ("quick_gelu", "gelu", "gelu_tanh"),
    "image_tokens": ("clip", "recognizer"),
    "prediction_type": ("epsilon", "v"),
}
_LONGEST_LIST = 32
_NAME = re.compile(r"\w[\w.-]{0,99}")


def wrong(value: Any, kind: Any, limits: Range = (-math.inf, math.inf)) -> str | None:
    """What is allowed, if `value` is not; None if it is.

    Args:
        value: of JSON or Python.
        kind: int, float, bool, str, tuple[X, ...] of these (a list will do), or one of them | None.
        limits: smallest and largest number, also of a tuple's.
    """
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kinds = [part for part in typing.get_args(kind) if part is not type(None)]
        return None if value is None else wrong(value, kinds[0], limits)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)) or len(value) > _LONGEST_LIST:
            return f"must be a list of at most {_LONGEST_LIST}, each {_allowed(inner, limits)}"
        inside = next(filter(None, (wrong(one, inner, limits) for one in value)), None)
        return inside and f"must be a list of which each {inside}"
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    fits = type(value) is kind and (
        kind not in (int, float) or (math.isfinite(value) and limits[0] <= value <= limits[1])
    )
    return None if fits else f"must be {_allowed(kind, limits)}"


def _allowed(kind: type, limits: Range) -> str:
    low, high = limits
    if kind not in (int, float) or (low == -math.inf and high == math.inf):
        return _WORDS[kind]
    if low == high:
        return f"{low:g}"
    top = f" to {high:,.15g}" if high < math.inf else " upwards"
    return f"{_WORDS[kind]} from {low:,.15g}{top}"


def shown(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def model_entry(name: str, value: Any, kind: Any) -> str | None:
    """What is wrong with the entry `name` of a model's configuration; None if nothing is."""
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    limits = MODEL_RANGES.get(name, (1, _LARGEST))
    problem = wrong(value, kind, limits)
    if problem:
        return problem
    if plain is str:
        if name in _CHOICES and value not in _CHOICES[name]:
            return f"must be {' or '.join(_CHOICES[name])}"
        if name == "controlnets" and not all(map(_NAME.fullmatch, value)):
            return "must be names of letters, digits, dots, - and _"
    if name in ("channel_multipliers", "hint_widths") and not value:
        return "must not be empty"
    return None


def contradictions(config: Any) -> Iterator[str]:
    """Entries of a `ModelConfig` that do not go together, each as "NAME is VALUE; …"."""
    unet, vae, text, identity = config.unet, config.vae, config.text, config.identity
    yield from _unet(unet)
    for half in ("encoder_channels", "decoder_channels"):
        for width in _widths(getattr(vae, half), vae.channel_multipliers):
            if width % vae.groups:
                yield (
                    f"vae.{half} is {getattr(vae, half)}; times its multipliers it must be "
                    f"divisible by vae.groups, {vae.groups}"
                )
                break
    latents = vae.latent_channels
    if unet.in_channels not in (latents, 2 * latents + 1):
        yield (
            f"unet.in_channels is {unet.in_channels}; it must be vae.latent_channels, {latents}, "
            f"or {2 * latents + 1} for inpainting"
        )
    if unet.out_channels != latents:
        yield f"unet.out_channels is {unet.out_channels}; it must be vae.latent_channels, {latents}"
    if unet.cross_attention_dim != text.width:
        yield (
            f"unet.cross_attention_dim is {unet.cross_attention_dim}; it must be text.width, "
            f"{text.width}"
        )
    step = vae.downsampling * 2 ** (len(unet.channel_multipliers) - 1)
    if config.image_size % step:
        yield f"image_size is {config.image_size}; it must be a multiple of {step}"
    hints = {"capface": config.capface} | (
        {"controlnet": config.controlnet} if config.controlnets else {}
    )
    for name, branch in hints.items():
        factor = 2 ** (len(branch.hint_widths) - 1)
        if factor != vae.downsampling:
            yield (
                f"{name}.hint_widths makes hints {factor} times smaller; latents are "
                f"{vae.downsampling} times smaller than pictures"
            )
    if len(set(config.controlnets)) < len(config.controlnets):
        yield "controlnets has a name twice"
    encoder = config.image_encoder
    for name, part in (("text", text), ("image_encoder", encoder)):
        if part is not None and part.width % part.heads:
            yield f"{name}.heads is {part.heads}; it must divide {name}.width, {part.width}"
    if encoder is not None and encoder.image_size % encoder.patch:
        yield (
            f"image_encoder.patch is {encoder.patch}; it must divide image_encoder.image_size, "
            f"{encoder.image_size}"
        )
    if identity.image_tokens == "clip" and encoder is None:
        yield "identity.image_tokens is clip; that needs an image_encoder"
    if identity.image_tokens == "clip" and encoder and identity.image_width != encoder.width:
        yield (
            f"identity.image_width is {identity.image_width}; it must be image_encoder.width, "
            f"{encoder.width}"
        )
    diffusion = config.diffusion
    if diffusion.beta_start > diffusion.beta_end:
        yield f"diffusion.beta_start is {diffusion.beta_start}; it must not exceed beta_end"
    if diffusion.zero_terminal_snr and diffusion.prediction_type != "v":
        yield "diffusion.zero_terminal_snr is True; that needs diffusion.prediction_type v"
    if config.sampling.steps > diffusion.num_timesteps:
        yield f"sampling.steps is {config.sampling.steps}; it must not exceed num_timesteps"


def _unet(unet: Any) -> Iterator[str]:
    levels = len(unet.channel_multipliers)
    if any(n & (n - 1) for n in unet.attention_resolutions):
        yield (
            f"unet.attention_resolutions is {unet.attention_resolutions}; each must be a power of 2"
        )
    if unet.channels % 2:
        yield f"unet.channels is {unet.channels}; it must be even"
    for level, width in enumerate(_widths(unet.channels, unet.channel_multipliers)):
        if width % unet.groups:
            yield (
                f"unet.channels is {unet.channels}; times its multipliers it must be divisible by "
                f"unet.groups, {unet.groups}"
            )
            break
        attends = 2**level in unet.attention_resolutions or level == levels - 1
        if attends and width % unet.heads:
            yield (
                f"unet.heads is {unet.heads}; it must divide the {width} channels of level {level}"
            )
            break


def _widths(channels: int, multipliers: tuple[int, ...]) -> list[int]:
    return [channels * multiplier for multiplier in multipliers]
