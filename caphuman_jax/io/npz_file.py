"""NumPy's .npz files of other people: regular files without pickles that do not unpack to far more
than their size."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from caphuman_jax.io.files import open_regular
from caphuman_jax.io.pickle_reader import Refused

_ALWAYS, _RATIO = 2**26, 50
"""Bytes that a file may always unpack to, and how many times its size beyond that."""


def open_npz(path: str | os.PathLike) -> np.lib.npyio.NpzFile:
    """The file, opened; each array is read when it is asked for.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it cannot be read, or is no .npz file.
        Refused: unpacked it would be far larger than it is.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_ALWAYS, _RATIO * size):
        raise Refused(
            f"its {size / 2**20:,.1f} MB would unpack to {unpacked / 2**20:,.0f} MB, which real "
            f"weights do not"
        )
    return np.load(path, allow_pickle=False)
