"""Files here or in a bucket (gs://, s3://, hdfs:// …, through Apache Beam's file systems), whole or
not at all.

Local files are written with `io.atomic`. In a bucket a file appears when it is closed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path

from caphuman_jax.errors import DataError
from caphuman_jax.io import atomic

_DELETED = 1000  # files in one request


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's files."""
    return "://" not in path


def check_known(path: str) -> None:
    """Raises DataError where the scheme of a URL is unknown, or its package is not installed."""
    if not is_local(path):
        try:
            _beam().get_filesystem(path)
        except ValueError as error:
            raise DataError(
                f"{path}: no installed package writes to {path.partition('://')[0]}://; for gs:// "
                f"and s3://, pip install 'apache-beam[gcp]' or 'apache-beam[aws]'"
            ) from error


def join(*parts: str) -> str:
    """A path inside a folder."""
    return (
        "/".join([parts[0].rstrip("/") or "/", *parts[1:]])
        if not is_local(parts[0])
        else os.path.join(*parts)
    )


def exists(path: str) -> bool:
    """Whether there is such a file (in a bucket) or file or folder (here)."""
    return os.path.exists(path) if is_local(path) else _beam().exists(path)


def read(path: str, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file, or a part. Raises OSError, also where there are fewer than `length`, and
    for what is not a regular file here.
    """
    with (
        open_regular(path)
        if is_local(path)
        else _beam().open(path, compression_type=_uncompressed()) as file
    ):
        if offset:
            file.seek(offset)
        data = file.read() if length is None else file.read(length)
    if length is not None and len(data) != length:
        raise OSError(f"{path} ends too early")
    return data


def write(path: str, data: bytes) -> None:
    """A file with this content, replacing one that is there."""
    with written(path) as part:
        Path(part).write_bytes(data)


@contextlib.contextmanager
def written(path: str) -> Generator[str]:
    """A local path to write; when the block ends, the file is at `path`. If the block raises,
    `path` stays as it was.
    """
    if is_local(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with atomic.file(path) as part:
            yield str(part)
        return
    with tempfile.TemporaryDirectory(prefix="caphuman-") as folder:
        part = os.path.join(folder, "part")
        yield part
        if path.startswith("s3://") and not os.path.getsize(part):
            # Beam uploads in parts, and S3 refuses an upload without any.
            _fsspec(path).pipe_file(path, b"")
            return
        with (
            open(part, "rb") as source,
            _beam().create(path, compression_type=_uncompressed()) as target,
        ):
            shutil.copyfileobj(source, target, 1 << 22)


def names(folder: str, below: str = "") -> list[str]:
    """Names of the files in a folder, or with below="*" in its folders, sorted; none where there is
    no such folder. Unfinished ones are left out.
    """
    if is_local(folder):
        return sorted(
            path.name
            for path in Path(folder).glob(f"{below}/*" if below else "*")
            if not path.name.startswith(".")
        )
    found = _beam().match([join(folder, *([below] if below else []), "*")])[0].metadata_list
    return sorted(entry.path.rsplit("/", 1)[-1] for entry in found)


def folders(folder: str, prefix: str) -> list[str]:
    """Names of the folders in a folder that begin with `prefix`, sorted; in a bucket, of those that
    hold a file directly.
    """
    if is_local(folder):
        try:
            return sorted(
                entry.name
                for entry in os.scandir(folder)
                if entry.is_dir() and entry.name.startswith(prefix)
            )
        except FileNotFoundError:
            return []
    found = _beam().match([join(folder, f"{prefix}*", "*")])[0].metadata_list
    return sorted({entry.path.rsplit("/", 2)[-2] for entry in found})


def remove(folder: str) -> None:
    """A folder and what is in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    paths = [
        entry.path for entry in _beam().match([join(folder, "**")])[0].metadata_list
    ]  # not every system removes what lies deeper
    for start in range(0, len(paths), _DELETED):
        _beam().delete(paths[start : start + _DELETED])


def explained(error: OSError, path: str) -> DataError | OSError:
    """One line for what a person can do something about: a full disk, a folder that may not be
    written.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"no space is left for {path}; make room and rerun the same command to resume"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DataError(
            f"{error.filename or path} may not be written ({error.strerror}); choose another --out"
        )
    return error


class NotRegularError(OSError):
    """A path that is not a regular file, such as a named pipe, which could block forever."""


_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """A local file, opened for reading bytes. Raises OSError; NotRegularError for a named pipe, a
    socket or a device, without waiting for it.
    """
    _check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(os.fstat(descriptor))  # it may have been replaced
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file. Raises OSError, also where there are more than `limit`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        raise OSError(
            f"it has {size / 2**20:,.0f} MB; files of its kind have at most {limit / 2**20:,.0f}"
        )
    return data


def printable(text: str) -> str:
    """A text for messages: bytes of a name that are not UTF-8, lone surrogates, control characters
    and marks that turn the direction of writing are escaped.
    """
    return _UNPRINTABLE.sub(lambda one: repr(one[0])[1:-1], text)


def valid_text(text: str) -> str:
    """A name as text that can be stored as UTF-8: what cannot is escaped, such as \\udcff for the
    byte 0xff.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise NotRegularError(f"it is not a regular file but {kind}")


def _beam():
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    # s3:// does not open without options, and a pipeline sets them only in its own process.
    if FileSystems._pipeline_options is None:
        FileSystems.set_options(PipelineOptions([]))
    return FileSystems


def _fsspec(path: str):
    from fsspec.core import url_to_fs

    return url_to_fs(path)[0]


def _uncompressed():
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED
