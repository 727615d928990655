"""Reading photos from anywhere, and writing PNG files with what was used to make them.

Everything else in the package sees pictures as uint8 RGB arrays (H, W, 3).
"""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from caphuman_jax.errors import PhotoError
from caphuman_jax.io import atomic, bands, color_profile
from caphuman_jax.io.files import printable
from caphuman_jax.io.picture_formats import most_pixels, open_picture, reason, too_large

MAX_PIXELS = 24_000_000
"""Larger photos are shrunk to about this many pixels."""
MAX_SIDE = 16_384
"""Longer photos are shrunk to this side (OpenCV stops at 32,767)."""
MIN_SIDE = 16

# What Pillow raises, depending on the format, for files that are damaged.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    struct.error,
    zlib.error,
)

PhotoSource = str | os.PathLike | bytes | Image.Image | np.ndarray


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its orientation (EXIF 2.3, tag 0x0112)."""


def read_photo(source: PhotoSource, name: str | None = None) -> np.ndarray:
    """RGB uint8 picture (H, W, 3) from a path, the bytes of a file, a PIL picture or an array.

    Turned upright by its EXIF orientation, transparency over white, 16 bits to 8, grey, palette and
    CMYK to RGB, colors to sRGB by the embedded profile, shrunk when above MAX_PIXELS or MAX_SIDE.
    Files are of the formats that `picture_formats` lists. Arrays are uint8, uint16 or floats in
    [0, 1], of shape (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4). Raises PhotoError naming
    the photo (as `name`, where given) when it cannot be read or is under MIN_SIDE pixels."""
    name = name or photo_name(source)
    if isinstance(source, np.ndarray):
        picture = _from_array(source, name)
    elif isinstance(source, Image.Image):
        picture = _decode(source, name)
    elif isinstance(source, (str, os.PathLike, bytes, bytearray)):
        picture = _open(source, name)
    else:
        raise PhotoError(
            f"a photo is a path, bytes, a PIL picture or an array, not {type(source).__name__}"
        )
    return np.array(picture)


def read_mask_picture(source: PhotoSource) -> np.ndarray:
    """(H, W) float32 in [0, 1] of what `read_photo` reads: 1 where it is white.

    Raises PhotoError for a picture that cannot be read or has transparent parts: some programs mean
    white by them, and others black.
    """
    if _has_transparency(source):
        raise PhotoError(
            f"the mask {photo_name(source)} has transparent parts; save it without transparency, "
            "in black and white"
        )
    return read_photo(source).astype(np.float32).mean(axis=-1) / 255


def _has_transparency(source):
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[-1] not in (2, 4):
            return False
        opaque = 1 if source.dtype.kind == "f" else np.iinfo(source.dtype).max
        return bool((source[..., -1] < opaque).any())
    if isinstance(source, Image.Image):
        return _shows_through(source)
    name = photo_name(source)
    try:
        with open_picture(source, name) as picture:
            return _shows_through(picture)
    except Image.DecompressionBombError as error:
        raise PhotoError(too_large(name)) from error
    except DAMAGE as error:
        raise PhotoError(_damaged(name, error)) from error


def _shows_through(picture):
    if not picture.has_transparency_data or _pixels(picture) > most_pixels(picture):
        return False
    picture.load()
    return any(
        bool((np.asarray(band.convert("RGBA").getchannel("A")) < 255).any())
        for band in bands.each(picture)
    )


def _pixels(picture):
    return picture.width * picture.height


def write_png(
    path: str | os.PathLike, image: np.ndarray, metadata: dict[str, str] | None = None
) -> None:
    """Write a picture as `encode_png` makes it, whole or not at all. Raises OSError if the folder
    cannot be written.
    """
    atomic.write_bytes(path, encode_png(image, metadata))


def encode_png(
    image: np.ndarray, metadata: dict[str, str] | None = None, compression: int = 6
) -> bytes:
    """An RGB or grey uint8 picture as a PNG file with text entries.

    Args:
        image: the picture.
        metadata: the entries.
        compression: 1 (fast) to 9 (small), as zlib counts.
    """
    target, entries = io.BytesIO(), png_text(metadata)
    Image.fromarray(image).save(target, "PNG", pnginfo=entries, compress_level=compression)
    return target.getvalue()


def png_text(entries: dict[str, str] | None) -> PngImagePlugin.PngInfo:
    """Text entries as Pillow writes them: in Latin-1 as tEXt chunks, others as iTXt."""
    info = PngImagePlugin.PngInfo()
    for key, text in (entries or {}).items():
        info.add_text(key, text)
    return info


def read_png_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Text entries of a PNG file. Raises PhotoError if it is not a PNG file."""
    try:
        with open_picture(path, photo_name(path)) as picture:
            if not isinstance(picture, PngImagePlugin.PngImageFile):
                raise PhotoError(
                    f"{path} is a {picture.format} file; only PNG files carry the entries"
                )
            picture.load()  # entries may stand behind the pixels
            return {key: str(text) for key, text in picture.text.items()}
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise PhotoError(f"{path} cannot be read as a PNG file ({error})") from error


def photo_name(source: PhotoSource) -> str:
    """What to call a photo in messages: its path where it has one."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fsdecode(source))
    if isinstance(source, np.ndarray):
        return "the array"
    return str(getattr(source, "filename", "")) or "the photo"


def _open(source, name):
    try:
        with open_picture(source, name) as picture:
            if _pixels(picture) > 4 * MAX_PIXELS:
                # Where the format can (JPEG), decode at half size, in a quarter of the memory.
                picture.draft(None, (picture.width // 2, picture.height // 2))
            return _decode(picture, name)
    except Image.DecompressionBombError as error:
        raise PhotoError(too_large(name)) from error
    except DAMAGE as error:
        raise PhotoError(_damaged(name, error)) from error


def _decode(picture, name):
    """RGB picture, shrunk and upright. It is turned last, when it is small."""
    if _pixels(picture) > most_pixels(picture):
        raise PhotoError(too_large(name, most_pixels(picture)))
    _check_sides(picture, name)
    try:
        picture.load()
        turn = _TURNS.get(_orientation(picture))
        picture = _converted(picture, name)
        return picture.transpose(turn) if turn is not None else picture
    except MemoryError as error:
        raise PhotoError(too_large(name, most_pixels(picture))) from error
    except DAMAGE as error:
        raise PhotoError(_damaged(name, error)) from error


def _converted(picture, name):
    """In RGB and shrunk."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return bands.converted(
            picture,
            _size(picture),
            lambda rows: _rgb_of_array(np.asarray(rows), name, deep=True),
        )
    to_srgb = color_profile.converter(picture, name)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        return bands.converted(picture, _size(picture), lambda rows: _over_white(to_srgb(rows)))
    if _size(picture) == picture.size:
        picture = to_srgb(picture)
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    return bands.converted(picture, _size(picture), lambda rows: to_srgb(rows).convert("RGB"))


def _orientation(picture):
    """As the EXIF part says; 1 (upright) where it cannot be read."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1


def _damaged(name, error):
    return f"{name} is damaged or incomplete ({reason(error)}); fetch or save it again"


def _over_white(picture):
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _from_array(array, name):
    picture = _rgb_of_array(array, name)
    _check_sides(picture, name)
    return bands.converted(picture, _size(picture), lambda rows: rows)


def _rgb_of_array(array, name, deep=False):
    """RGB picture of an array; `deep` marks integers that count to 65535 in a wider type."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4) or 0 in array.shape:
        raise PhotoError(f"{name} has shape {array.shape}; a picture is (H, W) or (H, W, 1 to 4)")
    array = _to_uint8(array, name, deep)
    if array.shape[-1] in (2, 4):
        return _over_white(Image.fromarray(array))
    return Image.fromarray(
        np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else np.ascontiguousarray(array)
    )


def _to_uint8(array, name, deep):
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16 or (deep and array.dtype.kind in "iu"):
        return np.round(np.clip(array.astype(np.float32), 0, 65535) / 257).astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise PhotoError(f"{name} holds values that are not finite")
        if array.min() < -1e-3 or array.max() > 1 + 1e-3:
            raise PhotoError(
                f"{name} holds floats from {array.min():.4g} to {array.max():.4g}; give floats in "
                f"[0, 1] or uint8"
            )
        return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    raise PhotoError(
        f"{name} has numbers of type {array.dtype}; give uint8, uint16 or floats in [0, 1]"
    )


def _size(picture):
    """(width, height) to shrink to."""
    scale = min((MAX_PIXELS / _pixels(picture)) ** 0.5, MAX_SIDE / max(picture.size))
    if scale >= 1:
        return picture.size
    return max(1, int(picture.width * scale)), max(1, int(picture.height * scale))


def _check_sides(picture, name):
    """Raises PhotoError where what it is shrunk to is under MIN_SIDE pixels."""
    if min(picture.size) < MIN_SIDE:
        raise PhotoError(
            f"{name} is only {picture.width}x{picture.height} pixels; use a photo with sides of "
            f"at least {MIN_SIDE}"
        )
    if min(_size(picture)) < MIN_SIDE:
        raise PhotoError(
            f"{name} is a strip of {picture.width}x{picture.height} pixels; use a photo whose "
            f"longer side is at most {MAX_SIDE // MIN_SIDE:,} times the shorter one"
        )
