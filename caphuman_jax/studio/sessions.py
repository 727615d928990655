"""Sessions: the photos and pictures of one browser or client, in a folder that nobody else reads
and that is deleted with the session.
"""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caphuman_jax.errors import CapHumanError
from caphuman_jax.studio.options import ServerOptions

if TYPE_CHECKING:  # brings JAX, which the page does not wait for
    from caphuman_jax.person.person import Person

_LOCK, _STARTING = "lock", "starting"
_LONGEST_NAME = 80
_PEOPLE = 16  # of one session, kept in memory


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of a session.

    Attributes:
        id: what requests name it by.
        name: the sender's name for it, without folders.
        field: the field of the form that it came in.
        path: where it lies; the last part is `name` with only harmless characters.
        facts: JSON types that are sent along with it.
    """

    id: str
    name: str
    field: str
    path: Path
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Session:
    """One browser's or client's files. Methods may be called from any thread."""

    def __init__(self, folder: Path, options: ServerOptions):
        self.id, self.folder, self.used = secrets.token_urlsafe(24), folder, time.monotonic()
        self._options, self._guard = options, threading.RLock()
        self.uploads: collections.OrderedDict[str, StoredFile] = collections.OrderedDict()
        self.pictures: collections.OrderedDict[str, StoredFile] = collections.OrderedDict()
        self._people: collections.OrderedDict[tuple, Person] = collections.OrderedDict()
        self.closed = False
        folder.mkdir(mode=0o700)

    def add_upload(
        self, name: str, data: bytes, facts: dict[str, Any] | None = None, field: str = ""
    ) -> StoredFile:
        """Keep a file; past `max_files` the oldest one is deleted. Raises OSError."""
        return self._add(self.uploads, self._options.max_files, name, data, facts, field)

    def add_picture(self, name: str, data: bytes, facts: dict[str, Any]) -> StoredFile:
        """Keep a picture that was made; past `max_made` the oldest one is deleted."""
        return self._add(self.pictures, self._options.max_made, name, data, facts)

    def find(self, photo: str, folder: Path) -> tuple[str | None, str]:
        """The path of an upload by its id, name or field, see `jobs.validate.Checker`. Nothing else
        is opened, whatever the text says.
        """
        with self._guard:
            found = self.uploads.get(photo) or next(
                (one for one in reversed(self.uploads.values()) if photo in (one.name, one.field)),
                None,
            )
        if found is None:
            return f"{photo[:100]!r} was not sent; upload it, or send it along with the job", ""
        return None, str(found.path)

    def person(self, path: str, face: int | None, measure: Callable[[], Person]) -> Person:
        """The person in an upload, measured once."""
        with self._guard:
            known = self._people.get((path, face))
        if known is None:
            known = measure()
            with self._guard:
                self._people[path, face] = known
                while len(self._people) > _PEOPLE:
                    self._people.popitem(last=False)
        return known

    def close(self) -> None:
        """Delete everything."""
        with self._guard:
            self.closed = True
            self.uploads.clear()
            self.pictures.clear()
            self._people.clear()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, kept, most, name, data, facts, field="") -> StoredFile:
        with self._guard:
            if self.closed:
                raise CapHumanError("the session has ended; reload the page")
            place = self.folder / secrets.token_hex(8)
            place.mkdir(mode=0o700)
            path = place / _harmless(name)
            with open(path, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
                file.write(data)
            stored = StoredFile(place.name, os.path.basename(name)[:200], field, path, facts or {})
            kept[stored.id] = stored
            while len(kept) > most:
                self._forget(kept.popitem(last=False)[1])
            return stored

    def _forget(self, file: StoredFile) -> None:
        for key in [key for key in self._people if key[0] == str(file.path)]:
            del self._people[key]
        shutil.rmtree(file.path.parent, ignore_errors=True)


class Sessions:
    """All sessions of a server, in a folder of its own that is deleted when the server stops. What
    servers left that were killed is deleted first.
    """

    def __init__(self, options: ServerOptions, parent: Path | None = None):
        self._options, self._guard = options, threading.Lock()
        self._sessions: dict[str, Session] = {}
        base = parent or Path(tempfile.gettempdir()) / f"caphuman-{os.getuid()}"
        _own_folder(base)
        starting = _opened(base / _STARTING)
        try:
            fcntl.flock(starting, fcntl.LOCK_EX)  # one server at a time
            remove_left_over(base)
            self.folder = base / secrets.token_hex(8)
            self.folder.mkdir(mode=0o700)
            self._lock = _locked(self.folder / _LOCK)
        finally:
            os.close(starting)

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self) -> Session:
        """A new session."""
        session = Session(self.folder / secrets.token_hex(8), self._options)
        with self._guard:
            self._sessions[session.id] = session
        return session

    def get(self, session_id: str | None) -> Session | None:
        """The session of that id, which is used by this."""
        session = self._sessions.get(session_id or "")
        if session is not None:
            session.used = time.monotonic()
        return session

    def end(self, session: Session) -> None:
        """Delete a session."""
        with self._guard:
            self._sessions.pop(session.id, None)
        session.close()

    def end_unused(self) -> None:
        """Delete the sessions that nobody has used for `session_seconds`."""
        limit = time.monotonic() - self._options.session_seconds
        for session in [one for one in self._sessions.values() if one.used < limit]:
            self.end(session)

    def close(self) -> None:
        """Delete all sessions."""
        for session in list(self._sessions.values()):
            self.end(session)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_left_over(base: Path) -> None:
    """Delete the folders in `base` of servers that no longer run."""
    for folder in base.iterdir():
        if folder.is_symlink() or not folder.is_dir():
            if folder.name != _STARTING:
                folder.unlink(missing_ok=True)
            continue
        lock = _locked(folder / _LOCK)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor of a file that is locked until it is closed or the process ends; None where
    another holds it.
    """
    file = _opened(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _own_folder(path: Path) -> None:
    """Make a folder that only its owner can read. Raises CapHumanError where somebody else made
    it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise CapHumanError(f"{path} belongs to somebody else; set TMPDIR to a folder of your own")
    os.chmod(path, 0o700)


def _harmless(name: str) -> str:
    """A file name of letters, digits, dots, - and _ that is not hidden."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "_", os.path.basename(name.replace("\\", "/")))
    stem, dot, ending = kept.lstrip("._-").rpartition(".")
    return f"{stem[:_LONGEST_NAME]}{dot}{ending[:16]}" or "photo"
