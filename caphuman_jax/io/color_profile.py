"""Embedded color profiles (ICC): photos in Display P3, Adobe RGB, CMYK or a grey curve to sRGB."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

log = logging.getLogger("caphuman_jax")

_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # of a profile, by the mode of pixels
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_MODES = dict.fromkeys(("RGB", "RGBA", "RGBa", "P", "PA"), "RGB") | {
    **dict.fromkeys(("L", "LA", "La", "1"), "L"),
    "CMYK": "CMYK",
}
"""The mode in which pixels of a mode are converted; the colors of others are left alone."""
_TOLERANCE = 1
"""A profile that moves no color by more than this many of 255 is sRGB, and changes nothing."""


def converter(picture: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """A function that converts a picture's colors from its embedded profile to sRGB.

    Relative colorimetric with black point compensation, as in other programs. Transparency stays.
    Without a profile, or with one that is sRGB itself, pictures are returned as they are. A profile
    that is damaged or made for another kind of pixels is ignored, with a warning.

    Args:
        picture: in any mode, with the profile in its `info`.
        name: of the photo, for the warning.
    """
    profile, mode = picture.info.get("icc_profile"), _MODES.get(picture.mode)
    if not profile or mode is None:
        return _unchanged
    transform = _transform(bytes(profile), mode)
    if isinstance(transform, str):
        log.warning("%s: %s; its colors are read as sRGB", name, transform)
    if transform is None or isinstance(transform, str):
        return _unchanged
    return functools.partial(_converted, transform=transform, mode=mode)


def _unchanged(picture: Image.Image) -> Image.Image:
    return picture


def _converted(picture: Image.Image, transform, mode: str) -> Image.Image:
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        color = _applied(whole.convert("RGB").convert(mode), transform)
        color.putalpha(whole.getchannel("A"))
        return color
    picture = picture if picture.mode == mode else picture.convert(mode)
    return _applied(picture, transform)


def _applied(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # it is only where the picture itself is changed
    return converted


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """The conversion of pixels of a mode to sRGB; None if it changes nothing; a text that says why
    the profile cannot be used.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != _SPACES[mode]:
            return f"its color profile is for {space or 'other'} pixels"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        probe = _probe(mode)
        moved = np.asarray(_applied(probe, transform), int)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return "its color profile is damaged"
    same = np.abs(moved - np.asarray(probe.convert("RGB"), int)).max() <= _TOLERANCE
    return None if same else transform


def _probe(mode: str) -> Image.Image:
    """A picture with colors from everywhere in the cube, or all greys."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return Image.fromarray(cube.reshape(16, 256, 3))
