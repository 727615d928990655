"""NumPy's .npz files of other people: regular files without pickles that do not unpack to far more
than their size."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np

from caphuman_jax.io.files import open_regular
from caphuman_jax.io.pickle_reader import Refused

_ALWAYS, _RATIO = 2**26, 50
"""Bytes that a file may always unpack to, and how many times its size beyond that."""
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npz(path: str | os.PathLike) -> np.lib.npyio.NpzFile:
    """The file, opened; each array is read when it is asked for.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it cannot be read, or is no .npz file.
        Refused: unpacked it would be far larger than it is, or an array's header says so.
    """
    path = Path(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    _check_header(archive, entry)
    if unpacked > max(_ALWAYS, _RATIO * size):
        raise Refused(
            f"its {size / 2**20:,.1f} MB would unpack to {unpacked / 2**20:,.0f} MB, which real "
            f"weights do not"
        )
    return np.load(path, allow_pickle=False)


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """NumPy allocates what a header asks for, whatever follows it."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{entry.filename} has the format {version}, which is not read")
        shape, _, dtype = _HEADERS[version](file)
    needed = math.prod(shape) * dtype.itemsize
    if needed > entry.file_size:
        raise Refused(
            f"{entry.filename} says that it holds {needed / 2**20:,.1f} MB, and has "
            f"{entry.file_size / 2**20:,.1f}"
        )
