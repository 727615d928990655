"""Arrays that are computed from files of the package, kept between processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from caphuman_jax.io import atomic
from caphuman_jax.runtime.compile_cache import cache_folder

log = logging.getLogger("caphuman_jax")


def kept(
    name: str, sources: Sequence[Path], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `compute` returns, read from `cache_folder()` where an earlier process has
    left them. A cache that cannot be read or written changes nothing but the time.

    Args:
        name: of the file, for people.
        sources: all files that the arrays depend on, code included.
        compute: the arrays by name.
    """
    digest = hashlib.sha256(np.__version__.encode())
    for source in sources:
        digest.update(source.read_bytes())
    path = cache_folder() / "arrays" / f"{name}-{digest.hexdigest()[:16]}.npz"
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        pass
    except Exception as error:  # NumPy raises many kinds for a damaged file
        log.info("%s is computed again: %s", path, error)
    arrays = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as part, open(part, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)  # pyrefly: ignore[bad-argument-type]
    except OSError as error:
        log.info("%s is not kept: %s", path, error)
    return arrays
