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
from collections.abc import Generator, Iterable
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

    Raises:
        FileNotFoundError: something else removed a file while the folder was flushed and renamed;
            `path` stays as it was. Files that were removed before are found by `check_there`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    part.mkdir()
    try:
        yield part
        files = [Path(root, name) for root, _, names in os.walk(part) for name in names]
        names = [file.relative_to(part) for file in files]
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                _flush(file)
        for root, _, _ in os.walk(part):
            _flush_folder(Path(root))
        check_there(part, names)
        ours = part.stat().st_ino
        old = _put(part, path)
        _flush_folder(path.parent)
        if _is(path, ours):  # no other writer has replaced it
            try:
                check_there(path, names)
            except FileNotFoundError:
                _take_back(part, path, old)
                raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_there(folder: Path, names: Iterable[str | os.PathLike]) -> None:
    """Raises FileNotFoundError, with advice, for the first of these files that `folder` does not
    hold. To be called at the end of a block that has written them.
    """
    for name in names:
        if not os.path.lexists(folder / name):
            raise FileNotFoundError(
                errno.ENOENT,
                "something removed it while the folder was written; run the same command again",
                os.fspath(name),
            )


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


def _put(part: Path, path: Path) -> Path | None:
    """Rename a folder to `path`. Returns where the folder is that was there; None if none was."""
    if not path.exists():
        os.rename(part, path)
        return None
    if _exchange(part, path):
        return part
    old = part.with_suffix(".old")
    os.rename(path, old)
    try:
        os.rename(part, path)
    except OSError:
        os.rename(old, path)
        raise
    return old


def _is(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def _take_back(part: Path, path: Path, old: Path | None) -> None:
    """The reverse of `_put`, as far as the folders are still there."""
    with contextlib.suppress(OSError):
        if old == part:
            _exchange(part, path)
        else:
            os.rename(path, part)
    with contextlib.suppress(OSError):
        if old is not None and old != part:
            os.rename(old, path)


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
