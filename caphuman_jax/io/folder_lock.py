"""One writer for a folder at a time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator
from pathlib import Path

from caphuman_jax.errors import DataError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def held(lock: Path, taken: str) -> Generator[None]:
    """Hold a lock while the block runs. The operating system releases it when the process ends for
    any reason. Where a file system has no locks, nothing is locked.

    Args:
        lock: the file that is locked; it is made if there is none.
        taken: the message where another process holds it.

    Raises:
        DataError: another process holds the lock.
        OSError: the file cannot be made.
    """
    import fcntl  # here, since Windows has none

    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(taken) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
