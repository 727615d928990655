"""Which formats of pictures are read, how they are known by their first bytes, and how files are
opened without waiting for what is not a regular file.

Photos are untrusted. Pillow would start Ghostscript for PostScript, so only the decoders listed
here are used, and the content decides, not the ending.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import stat
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from caphuman_jax.errors import PhotoError
from caphuman_jax.io import checks
from caphuman_jax.io.files import open_regular, printable

PHOTO_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .avif .heic .heif .hif .mpo .jp2 .j2k "
    ".jpx .jpf .ppm .pgm .pbm .pnm".split()
)
"""Endings, in lower case, of files that are taken for photos without being opened."""
OTHER_ENDINGS = frozenset(
    ".txt .json .jsonl .csv .tsv .parquet .tar .zip .cls .npy .npz .xml .yaml .yml .md .html .py "
    ".log .mp4 .mov .avi .mkv .webm .identity .safetensors".split()
)
"""Endings of files that are not opened to find out whether they are photos."""
MAX_BYTES = 512 * 2**20
"""Larger files are not read as photos: more than the largest picture takes uncompressed."""
DECODE_LIMIT = 178_000_000
"""Pixels. Larger photos are not decoded: a small file may unpack to more than the memory. Just
below Pillow's own limit.
"""
_COPIES_LIMIT = {"WEBP": 60_000_000, "AVIF": 100_000_000, "JPEG2000": 50_000_000}
"""Pixels of formats whose decoders keep several copies: 16, 10 and 20 bytes for each pixel, where
the others need 4.
"""
_TURNED_TIFF_LIMIT = 120_000_000
"""Pixels of a TIFF file that Pillow turns while it decodes, which takes a second copy."""
HEAD = 32
"""Bytes of a file that `picture_format` needs."""

_ALLOWED = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM")  # JPEG: MPO too
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
)
_BMP_HEADERS = frozenset((12, 16, 40, 52, 56, 64, 108, 124))


def picture_format(head: bytes) -> str | None:
    """The format of a picture file by its first HEAD bytes; None for anything else."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] in _TIFF:
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, HEAD, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIC" if brands & _HEIF_BRANDS else None
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n":
        return "PPM" if head[3:4].isdigit() or head[3:4] == b"#" else None
    return None


def is_photo(name: str, read_head: Callable[[], bytes]) -> bool:
    """Whether a file in a folder is taken for a photo: by its ending where that is a known one,
    and otherwise by its content.

    Args:
        name: of the file.
        read_head: returns its first HEAD bytes. Called only where the ending does not decide.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending in PHOTO_ENDINGS or ending in OTHER_ENDINGS:
        return ending in PHOTO_ENDINGS
    try:
        return picture_format(read_head()) is not None
    except OSError:
        return False


def photos_in(folder: Path, deep: bool = False) -> Iterator[Path]:
    """The photos in a folder (with `deep` also in its subfolders), in no order. Names that begin
    with a dot are skipped.
    """
    for path in folder.rglob("*") if deep else folder.iterdir():
        if path.name.startswith(".") or path.is_dir():
            continue
        if is_photo(path.name, lambda path=path: read_head(path)):
            yield path


def read_head(path: str | os.PathLike) -> bytes:
    """The first HEAD bytes of a regular file. Raises OSError."""
    with open_regular(path) as file:
        return file.read(HEAD)


@contextlib.contextmanager
def open_picture(
    source: str | os.PathLike | bytes | bytearray, name: str
) -> Generator[Image.Image]:
    """A picture file, opened but not decoded.

    Args:
        source: path or content.
        name: for messages.

    Raises:
        PhotoError: it does not exist, may not be read, is too large, is not a regular file, or is
            of a format that is not read. What is decoded later may still raise
            `Image.DecompressionBombError`: pages have sizes of their own.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray)):
            file: BinaryIO = io.BytesIO(source)
            size = len(source)
        else:
            file = stack.enter_context(_Bounded(_opened(source, name).detach()))
            size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise PhotoError(
                f"{name} has {size / 2**20:,.0f} MB; photos have at most {MAX_BYTES >> 20}"
            )
        head = file.read(HEAD)
        file.seek(0)
        found = picture_format(head)
        allowed = _allowed(found, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(file, formats=allowed)
        except UnidentifiedImageError as error:
            if found is not None:
                raise PhotoError(
                    f"{name} is a damaged or incomplete {found} file; fetch or save it again"
                ) from error
            raise PhotoError(
                f"{name} is not a picture in a format that can be read; save it as JPEG or PNG"
            ) from error
        except Image.DecompressionBombError as error:
            raise PhotoError(too_large(name)) from error
        yield stack.enter_context(picture)


class _Bounded(io.BufferedReader):
    """A file of which no more is asked than there is: Pillow asks for as much as the length in a
    file says, up to 4 GB, and Python allocates it before it reads.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _opened(path: str | os.PathLike, name: str) -> io.BufferedReader:
    checks.path("the name of a photo", os.fsdecode(path), error=PhotoError)
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise PhotoError(f"{name} is a folder; name the photo in it")
        return open_regular(path)
    except PermissionError as error:
        raise PhotoError(f"{name} may not be read; check its permissions") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        advice = "download it first" if "://" in str(path) else "check the path"
        raise PhotoError(f"{name} does not exist; {advice}") from error
    except (OSError, ValueError) as error:  # also names with a null byte
        raise PhotoError(f"{name} cannot be read ({reason(error)})") from error


def _allowed(found: str | None, name: str) -> tuple[str, ...]:
    """Pillow's decoders that may open the file. Raises PhotoError for HEIC without its package."""
    if found != "HEIC":
        return _ALLOWED
    if importlib.util.find_spec("pillow_heif") is None:
        raise PhotoError(
            f"{name} is a HEIC photo; install the package that reads them (pip install "
            f"pillow-heif), or save it as JPEG"
        )
    importlib.import_module("pillow_heif").register_heif_opener()
    return ("HEIF",)


def most_pixels(picture: Image.Image) -> int:
    """Pixels that a picture may have to be decoded, which takes less than 1 GB then."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and (
        picture.tag_v2.get(ExifTags.Base.Orientation, 1) != 1
    ):
        return _TURNED_TIFF_LIMIT
    return _COPIES_LIMIT.get(picture.format or "", DECODE_LIMIT)


def too_large(name: str, most: int = DECODE_LIMIT) -> str:
    """The message for a picture of more than `most` pixels."""
    return f"{name} is too large; shrink it to under {most // 10**6} megapixels"


def reason(error: Exception) -> str:
    """What an exception says, in one printable line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()))
