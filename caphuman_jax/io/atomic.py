"""Files and folders that appear whole or not at all.

Both are written under a hidden temporary name next to their place, flushed to the disk and then
renamed. Whenever the writer is killed, the old file is still there; at worst a file named
`.NAME.*.part` is left over. Temporary names are unique, so that several processes may write the
same file: the last one to finish wins.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Generator
from pathlib import Path

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextlib.contextmanager
def file(path: str | os.PathLike) -> Generator[Path]:
    """A temporary path to write; it replaces `path` when the block ends without an exception.

    A file that is replaced passes its permission bits on. If the block raises, the temporary file
    is removed and `path` stays as it was. The parent folder has to exist.
    """
    path = Path(path)
    part = _part(path)
    try:
        yield part
        _flush(part)
        with contextlib.suppress(OSError):
            part.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(part, path)
        _flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: str | os.PathLike) -> Generator[Path]:
    """A new, empty temporary folder to fill; it replaces `path` when the block ends without an
    exception.

    If the block raises, the temporary folder is removed and `path` stays as it was. Parent folders
    are created. A folder that exists is exchanged for the new one at once on Linux; elsewhere, a
    writer that is killed between two renames leaves it as `.NAME.*.old`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    part.mkdir()
    try:
        yield part
        for root, _, names in os.walk(part):
            for name in names:
                _flush(Path(root, name))
            _flush_folder(Path(root))
        if path.exists() and _exchange(part, path):
            pass  # `part` is the old folder now
        elif path.exists():
            old = part.with_suffix(".old")
            os.rename(path, old)
            try:
                os.rename(part, path)
            except OSError:
                os.rename(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(part, path)
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write or replace a file."""
    with file(path) as part:
        part.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write or replace a text file in UTF-8."""
    write_bytes(path, text.encode())


def create(path: str | os.PathLike, data: bytes) -> bool:
    """Write a file unless it exists; of several processes only one succeeds.

    Returns:
        Whether this call created the file. Where the file system has no hard links, an existing
        file is replaced and the result is True.
    """
    path = Path(path)
    part = _part(path)
    try:
        part.write_bytes(data)
        _flush(part)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.replace(part, path)
        _flush_folder(path.parent)
        return True
    finally:
        part.unlink(missing_ok=True)


def leftovers(folder: str | os.PathLike) -> list[Path]:
    """Temporary files and folders directly in `folder`, of writers that were killed or still
    write."""
    return sorted(Path(folder).glob(".*.part"))


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step. False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    return not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


def _flush(path: Path) -> None:
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def _flush_folder(path: Path) -> None:
    """Makes a rename last through a power failure, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
