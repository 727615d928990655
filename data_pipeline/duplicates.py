"""Photos that are there twice: the same file, or the same picture saved again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BITS = 64
NEAR_COSINE = 0.9  # of recognition vectors of one picture; saved again as a JPEG of quality 50 it is above 0.95
_MOST_BANDS = 16  # beyond it bands are too narrow to tell pictures apart, and all pairs are compared
_BLOCK = 2048


def exact_duplicates(sha256: Sequence[str]) -> dict[int, int]:
    """{number: number of the first of the same hash}, for all but the first."""
    first: dict[str, int] = {}
    return {i: kept for i, sha in enumerate(sha256) if (kept := first.setdefault(sha, i)) != i}


def near_duplicates(dhash: np.ndarray, bits: int, vectors: np.ndarray, among: np.ndarray) -> dict[int, int]:
    """{number: number of the first photo that it repeats}, for photos whose difference hashes (N,) uint64 differ in `bits` of 64 at most.

    Recognition vectors (N, D) float32 of length 1 must agree as well: flat pictures have like hashes. Only `among` (M,), ascending, are compared.
    A photo that itself repeats another is nobody's first. Hashes that differ in k bits agree in one of k + 1 bands at least, so that
    nothing within `bits` is missed; only photos that share a band are compared.
    """
    pairs = set()
    for group in _groups(dhash[among], bits):
        group = among[group]
        for start in range(0, len(group), _BLOCK):
            rows = group[start: start + _BLOCK]
            for below in range(start, len(group), _BLOCK):
                columns = group[below: below + _BLOCK]
                near = np.bitwise_count(dhash[rows][:, None] ^ dhash[columns][None]) <= bits
                pairs.update((int(rows[r]), int(columns[c])) for r, c in np.argwhere(near) if rows[r] < columns[c])
    repeats: dict[int, int] = {}
    for first, second in sorted(pairs):
        if first not in repeats and second not in repeats and float(vectors[first] @ vectors[second]) > NEAR_COSINE:
            repeats[second] = first
    return repeats


def _groups(dhash: np.ndarray, bits: int):
    """Numbers, ascending, of photos that share a band of the hash; every pair within `bits` is in one group at least."""
    if bits + 1 > _MOST_BANDS:
        yield np.arange(len(dhash))
        return
    edges = np.linspace(0, BITS, bits + 2).round().astype(int)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        band = dhash >> np.uint64(low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        yield from (group for group in np.split(order, ends) if len(group) > 1)
