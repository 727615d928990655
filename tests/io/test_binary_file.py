"""Pieces of a file, read by several threads at the same time, are those of the file."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import Damaged


@pytest.mark.parametrize("at_once", [True, False])
def test_threads(tmp_path, monkeypatch, at_once):
    if not at_once:  # as where the system has no such call
        monkeypatch.delattr(os, "preadv", raising=False)
    whole = np.random.default_rng(0).integers(0, 256, 1_000_000).astype(np.uint8)
    (tmp_path / "file").write_bytes(whole.tobytes())
    file = File(tmp_path / "file")
    pieces = [
        (start, 1_000_000 - start if start % 3 else 70_000) for start in range(0, 900_000, 9_973)
    ]
    with ThreadPoolExecutor(8) as pool:
        for (start, length), found in zip(pieces, pool.map(lambda p: file.read(*p), pieces)):
            np.testing.assert_array_equal(found, whole[start : start + length])
    os.truncate(tmp_path / "file", 500_000)  # while it is open
    with pytest.raises(Damaged, match="ends before"):
        file.read(400_000, 200_000)
    file.close()
