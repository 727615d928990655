"""Work folders in buckets: a local stand-in whose files are copied to the bucket as they change.

Appending and renaming, which files of a run need, are not what buckets are for. Checkpoints are
written to the bucket directly and are left out here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from etils import epath

from caphuman_jax.errors import CapHumanError, DataError, SettingError
from caphuman_jax.io.files import read_regular

MARK = ".bucket"
"""The file in a stand-in that names its URL."""
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_SECONDS = 20.0  # between two copies
_LISTED = 60.0  # that a listing may be late


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL. `Path` makes gs:/b of gs://b, so texts have to be asked."""
    return "://" in os.fspath(path)


def check(path: str, what: str = "work folders") -> None:
    """Raises SettingError for a URL that cannot be used, and for one that became a local path on
    its way (gs:/bucket). what: names what lies there, for the message.
    """
    if re.match(r"(gs|s3):/(?!/)", path):
        raise SettingError(f"{path}: a bucket is written with two slashes, {path[:3]}//…")
    if not is_url(path):
        return
    scheme = path.partition("://")[0]
    if scheme == "file":
        return
    if scheme not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES)
        raise SettingError(f"{path}: {what} can be in {known} or on a disk, not in {scheme}")
    _read_without_tensorflow()
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise SettingError(f"{path} needs {_PACKAGES[scheme]}: pip install {_PACKAGES[scheme]}")


def _read_without_tensorflow() -> None:
    """Orbax and status reach buckets through etils, which prefers TensorFlow, and that has no s3://.
    etils keeps its choice from the first path, also a local one.
    """
    from etils.epath import gpath

    os.environ.setdefault("EPATH_USE_TF", "0")
    gpath._is_tf_installed.cache_clear()


def read_bytes(path: epath.Path, limit: int) -> bytes:
    """The bytes of a file on a disk or in a bucket. Raises OSError, on a disk also for what is not
    a regular file, without waiting for it, and where there are more than `limit`.
    """
    return path.read_bytes() if is_url(path) else read_regular(path, limit)


@contextlib.contextmanager
def problems(path: str) -> Generator[None]:
    """Raises DataError for whatever goes wrong with a bucket; errors of disks stay as they are."""
    try:
        yield
    except CapHumanError:
        raise
    except Exception as error:  # every provider has exceptions of its own
        if not is_url(path) or path.startswith("file://"):
            raise
        raise DataError(f"{path} cannot be read: {_short(error)}") from error


def move(folder: str, target: str) -> None:
    """Moves a folder of a bucket, and waits until it is no longer listed, for a minute at most:
    what is listed counts as there, and cannot be written again.
    """
    from fsspec.core import url_to_fs

    # A rename of etils wants the folder of the target, and buckets have no empty folders.
    system, source = url_to_fs(folder)
    # "ignore": a file that is listed although it is gone.
    system.copy(source, url_to_fs(target)[1], recursive=True, on_error="ignore")
    system.rm(source, recursive=True)
    deadline = time.monotonic() + _LISTED
    while time.monotonic() < deadline:
        system.invalidate_cache()
        if not system.exists(source):
            return
        time.sleep(0.5)


def url_of(folder: Path) -> str | None:
    """The URL of a stand-in or of a folder in it; None for an ordinary folder."""
    for parent in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            url = (parent / MARK).read_text()
            return "/".join([url, *folder.relative_to(parent).parts])
    return None


@contextlib.contextmanager
def local_folder(path: str, keep: Callable[[str], bool]) -> Generator[tuple[Path, Mirror | None]]:
    """(the folder, None) of a path on a disk; for a URL (its stand-in, what copies it).

    Args:
        path: a local path, file://…, gs://… or s3://….
        keep: which files this process copies to the bucket, by their path in the folder.

    Raises:
        SettingError: see `check`.
        DataError: where the bucket cannot be read.
    """
    check(path)
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if not is_url(path):
        yield Path(path), None
        return
    with tempfile.TemporaryDirectory(prefix="caphuman-run-") as local:
        mirror = Mirror(path, Path(local), keep)
        mirror.pull()
        (mirror.folder / MARK).write_text(path.rstrip("/"))
        with mirror:
            yield mirror.folder, mirror


class Mirror:
    """Copies a local folder to a URL; as a context, every 20 seconds and at the end.

    Args of the constructor:
        url: of the folder in the bucket.
        folder: the local stand-in.
        keep: which files are copied to the bucket, by their path in the folder.
    """

    def __init__(self, url: str, folder: Path, keep: Callable[[str], bool]):
        from fsspec.core import url_to_fs

        self.url, self.folder, self._keep = url, folder, keep
        self._system: Any
        self._system, self._root = url_to_fs(url.rstrip("/"))
        self._copied: dict[str, tuple[int, int]] = {}
        self._guard, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="bucket", daemon=True)

    def pull(self) -> None:
        """Brings what the bucket has and the folder has not, without checkpoints. Raises
        DataError.
        """
        try:
            self._system.invalidate_cache()
            found = self._system.find(self._root)
            for path in found:
                name = path[len(self._root) :].lstrip("/")
                target = self.folder / name
                if not name or _is_checkpoint(name) or target.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._system.cat_file(path))
                self._copied[name] = _version(target)
        except FileNotFoundError:
            return
        except Exception as error:  # every provider has exceptions of its own
            raise DataError(f"{self.url} cannot be read: {_short(error)}") from error

    def push(self) -> None:
        """Copies what has changed. Raises DataError."""
        with self._guard:
            for path in sorted(self.folder.rglob("*")):
                name = path.relative_to(self.folder).as_posix()
                if not path.is_file() or path.name.startswith(".") or _is_checkpoint(name):
                    continue
                version = _version(path)
                if self._copied.get(name) == version or not self._keep(name):
                    continue
                try:
                    self._system.pipe_file(f"{self._root}/{name}", path.read_bytes())
                except Exception as error:
                    raise DataError(
                        f"{self.url}/{name} cannot be written: {_short(error)}"
                    ) from error
                self._copied[name] = version

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._thread.join()
        self.push()

    def _work(self) -> None:
        while not self._stopped.wait(_SECONDS):
            # A bucket that is out of reach for a while is tried again, and at the end in earnest.
            with contextlib.suppress(DataError):
                self.push()


def _is_checkpoint(name: str) -> bool:
    return any(part in ("checkpoints", "damaged") for part in name.split("/")[:-1])


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
