"""Pictures: images with the AI-generated mark and their settings, and how they are written."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from caphuman_jax.errors import CapHumanError
from caphuman_jax.io import atomic
from caphuman_jax.io.images import encode_png, png_text
from caphuman_jax.io.metadata import metadata, source_of, summary, xmp

_JPEG_QUALITY = 95
_LONGEST_COMMENT = 65_000  # bytes that a JPEG file can hold
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286  # of Exif 2.3, 4.6.3 and 4.6.5


class Picture(Image.Image):
    """A Pillow image whose `save` writes the AI-generated mark and the settings.

    Args:
        pixels: (H, W, 3) uint8.
        settings: everything that it was made with, see `pipeline.Result`; None: only the mark is
            written.
    """

    def __init__(self, pixels: np.ndarray, settings: dict[str, Any] | None = None):
        super().__init__()
        self.__dict__.update(Image.fromarray(pixels).__dict__)
        self.settings = settings

    def save(  # pyrefly: ignore[bad-override] - Pillow's own types are private
        self, fp: str | os.PathLike | IO[bytes], format: str | None = None, **params: Any
    ) -> None:
        """Write a PNG, JPEG or WebP file; see `PIL.Image.Image.save` for the arguments.

        Raises:
            CapHumanError: another format; it would not say that the picture is AI-generated.
        """
        name = fp if isinstance(fp, (str, os.PathLike)) else getattr(fp, "name", "")
        kind = format or Image.registered_extensions().get(Path(name).suffix.lower(), "")
        super().save(fp, format=kind.upper(), **(save_options(kind, self.settings) | params))


def save_options(kind: str, settings: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of Pillow's `save` that write the mark and the settings.

    Raises:
        CapHumanError: a format that does not hold them.
    """
    kind = kind.upper()
    if kind == "PNG":
        return {"pnginfo": png_text(metadata(settings))}
    mark = xmp(source_of(settings)).encode()
    if kind == "WEBP":
        return {"xmp": mark, "quality": _JPEG_QUALITY} | _exif(settings)
    if kind not in ("JPEG", "JPG"):
        raise CapHumanError(
            f"a picture is saved as PNG, JPEG or WebP, not {kind or 'without an ending'}; other "
            "formats do not say that it is AI-generated"
        )
    comment = json.dumps(settings, ensure_ascii=False).encode() if settings else b"AI-generated"
    if len(comment) > _LONGEST_COMMENT:
        comment = b"AI-generated"
    options = {"quality": _JPEG_QUALITY, "subsampling": 0, "xmp": mark, "comment": comment}
    return options | _exif(settings)


def _exif(settings: dict[str, Any] | None) -> dict[str, Any]:
    """The text `parameters` as Exif's UserComment, where Stable Diffusion web UI writes it into
    JPEG and WebP files.
    """
    text = summary(settings).encode("utf-16-be", "replace") if settings else b""
    if not 0 < len(text) < _LONGEST_COMMENT:
        return {}
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text
    return {"exif": exif}


def encode_jpeg(pixels: np.ndarray, settings: dict[str, Any]) -> bytes:
    """A JPEG file with the AI-generated mark (XMP) and the settings (JSON, as its comment)."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="JPEG", **save_options("JPEG", settings))
    return target.getvalue()


class PictureWriter:
    """Writes images as FOLDER/picture_NN.png with their settings, each as soon as it is made.

    Numbers follow those of the pictures and sheets that the folder has, unless `overwrite`. A name
    is taken by one writer only, so that several may write into one folder at the same time.
    """

    def __init__(self, folder: str | os.PathLike, overwrite: bool = False):
        self.folder, self.overwrite, self.paths = Path(folder), overwrite, []
        self._next: int | None = None
        self._first = 0

    def write(self, image: np.ndarray, settings: dict[str, Any]) -> Path:
        """Write the next image (H, W, 3) uint8 with its settings, of which `index` is its number.

        Raises:
            CapHumanError: the folder cannot be written to.
        """
        path = self._write("picture_{:02d}.png", encode_png(image, metadata(settings)))
        if not self.paths:
            self._first = int(path.stem.rpartition("_")[2])
        self.paths.append(path)
        return path

    def write_sheet(self, sheet: np.ndarray) -> Path:
        """Write a contact sheet: sheet.png, or sheet_NN.png with the first picture's number.

        Raises:
            CapHumanError: the folder cannot be written to.
        """
        name = f"sheet_{self._first:02d}.png" if self._first else "sheet.png"
        return self._write(name, encode_png(sheet, metadata()))

    def _write(self, name: str, data: bytes) -> Path:
        """Write a file. A name with a place for a number gets the next one that is free."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._next is None:
                self._next = self._free()
            while "{" in name:
                path = self.folder / name.format(self._next)
                self._next += 1
                if self.overwrite:
                    atomic.write_bytes(path, data)
                    return path
                if atomic.create(path, data):
                    return path
            atomic.write_bytes(self.folder / name, data)
        except OSError as error:
            raise CapHumanError(
                f"pictures cannot be written to {self.folder} ({error.strerror or error})"
            ) from error
        return self.folder / name

    def _free(self) -> int:
        """The number after those of the pictures and sheets that the folder has."""
        there = () if self.overwrite else os.listdir(self.folder)
        found = (re.fullmatch(r"(?:picture|sheet)_(\d+)\.png", name) for name in there)
        return 1 + max((int(match[1]) for match in found if match), default=-1)
