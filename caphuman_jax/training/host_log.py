"""What each host of several says of itself: WORKDIR/hosts/host-N.log, a line with time, host and
step. The first host alone writes metrics and the progress line.
"""

from __future__ import annotations

import datetime
import socket
from pathlib import Path

import jax


class HostLog:
    """Lines of this host, if it is one of several.

    Args of the constructor:
        workdir: of the run.
    """

    def __init__(self, workdir: Path):
        self._file = None
        if jax.process_count() > 1:
            folder = workdir / "hosts"
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / f"host-{jax.process_index()}.log", "a")
        self._name = f"host {jax.process_index()} {socket.gethostname()}"

    def write(self, step: int, text: str) -> None:
        """One line."""
        if self._file is not None:
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            self._file.write(f"{now} {self._name} step {step}: {text}\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
