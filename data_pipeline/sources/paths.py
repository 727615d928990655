"""Paths on this machine and addresses in a bucket (gs://, s3:// …), read through fsspec."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator

from caphuman_jax.errors import DataError
from caphuman_jax.io.files import open_regular, read_regular
from caphuman_jax.io.picture_formats import MAX_BYTES


def join(*parts: str) -> str:
    """Join the parts of a path or an address."""
    return posixpath.join(*parts)


def listing(place: str) -> Iterator[tuple[str, bool]]:
    """Names in a folder, in no order, and whether each is a folder."""
    if "://" in place:
        for entry in file_system(place).ls(place, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name and not name.startswith("."):
                yield name, entry["type"] == "directory"
        return
    with os.scandir(place) as entries:
        yield from (
            (entry.name, _is_dir(entry)) for entry in entries if not entry.name.startswith(".")
        )


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it says what is wrong
        return False


def is_dir(place: str) -> bool:
    """Whether the path is a folder."""
    return file_system(place).isdir(place) if "://" in place else os.path.isdir(place)


def exists(place: str) -> bool:
    """Whether there is a file or folder at the path."""
    return file_system(place).exists(place) if "://" in place else os.path.exists(place)


def read_bytes(place: str, start: int = 0, count: int | None = None) -> bytes:
    """The bytes of a file from `start` on, or `count` of them. Raises OSError."""
    with open_file(place) as stream:
        stream.seek(start)
        return stream.read() if count is None else stream.read(count)


def read_photo_file(place: str) -> bytes:
    """The bytes of a photo's file. Raises OSError, also where it is larger than photos may be."""
    if "://" not in place:
        return read_regular(place, MAX_BYTES)
    size = file_system(place).size(place) or 0
    if size > MAX_BYTES:
        raise OSError(f"it has {size / 2**20:,.0f} MB; photos have at most {MAX_BYTES >> 20}")
    return read_bytes(place)


def read_text(place: str) -> str:
    """The text of a file. Raises DataError."""
    try:
        return read_bytes(place).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read ({error})") from error


def open_file(place: str):
    """The file, opened for reading bytes. Raises OSError."""
    return file_system(place).open(place, "rb") if "://" in place else open_regular(place)


def file_system(place: str):
    try:
        import fsspec

        return fsspec.core.url_to_fs(place)[0]
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{place} cannot be opened here ({error}); install the package that fsspec names for it"
        ) from error
