"""A file that is read in pieces, from several threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from caphuman_jax.io.files import open_regular
from caphuman_jax.io.pickle_reader import Damaged


class File:
    """An open file that is read in pieces."""

    def __init__(self, path: Path):
        self.path = path
        self.stream = open_regular(path).detach()  # pyrefly: ignore[missing-attribute]
        self.size = os.fstat(self.stream.fileno()).st_size
        self.lock = threading.Lock()

    def read(self, start: int, length: int) -> np.ndarray:
        """Bytes as (length,) uint8. Raises Damaged where the file ends before."""
        if start < 0 or length < 0 or start + length > self.size:
            raise Damaged("it ends before its last tensor")
        data = np.empty(length, np.uint8)
        view, done = data.data, 0
        while done < length:
            count = self._read_into(view[done:], start + done)
            if not count:
                raise Damaged("it ends before its last tensor")
            done += count
        return data

    def _read_into(self, view: memoryview, start: int) -> int:
        if hasattr(os, "preadv"):  # has no position in the file, so threads read side by side
            return os.preadv(self.stream.fileno(), [view], start)
        with self.lock:
            self.stream.seek(start)
            return self.stream.readinto(view)

    def close(self) -> None:
        self.stream.close()

    def __del__(self):
        if hasattr(self, "stream"):
            self.close()
