"""Photos that occur twice: the same file, or the same picture saved again."""

from __future__ import annotations

import numpy as np

BITS = 64
# least cosine of recognition vectors of one picture; for 60 portraits and their copies of JPEG
# quality 50 it is at least 0.96, of quality 20 at least 0.92
NEAR_COSINE = 0.9
# from this many bits on, bands are too narrow to distinguish pictures, and every photo is compared
# with all before it
_MOST_BANDS = 16


def exact_duplicates(sha256: np.ndarray) -> dict[int, int]:
    """{number: number of the first photo with the same hash}, for all but the first; hashes are
    (N,) bytes."""
    order = np.argsort(sha256, kind="stable")
    same = sha256[order[1:]] == sha256[order[:-1]]
    first: dict[int, int] = {}
    for before, number in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        first[number] = first.get(before, before)
    return first


def near_duplicates(
    dhash: np.ndarray, bits: int, vectors: np.ndarray, among: np.ndarray
) -> dict[int, int]:
    """Photos whose difference hashes differ in few bits, and whose recognition vectors agree: flat
    pictures have similar hashes.

    Hashes that differ in k bits agree in at least one of k + 1 bands. A photo is therefore compared
    only with those that share a band, and nothing is missed.

    Args:
        dhash: (N,) uint64.
        bits: how many of 64 may differ.
        vectors: (N, D) float32 of length 1.
        among: (M,) ascending numbers of the photos to compare.

    Returns:
        {number: number of the first photo that it repeats}; a photo that repeats another is never
        the first.
    """
    hashes = dhash[among]
    groups = [_grouped(band) for band in _bands(hashes, bits)]
    repeated, sharing = np.zeros(len(among), bool), np.zeros(len(among), bool)
    for _, first, place in groups:
        sharing |= place > first
    repeats: dict[int, int] = {}
    for i in np.flatnonzero(sharing):
        before = np.unique(
            np.concatenate([order[first[i] : place[i]] for order, first, place in groups])
        )
        before = before[~repeated[before]]
        near = among[before[np.bitwise_count(hashes[before] ^ hashes[i]) <= bits]]
        near = near[vectors[near] @ vectors[among[i]] > NEAR_COSINE]
        if len(near):
            repeats[int(among[i])] = int(near[0])
            repeated[i] = True
    return repeats


def _bands(hashes: np.ndarray, bits: int):
    """Parts of hashes (M,) uint64; two hashes that differ in at most `bits` share one of them."""
    if bits >= _MOST_BANDS:
        yield np.zeros_like(hashes)
        return
    edges = np.linspace(0, BITS, bits + 2).round().astype(int).tolist()
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        yield hashes >> np.uint64(low) & np.uint64((1 << high - low) - 1)


def _grouped(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (M,) sorted by value, then by number; and for each number the place in that order
    where its value begins, and its own place."""
    order = np.argsort(values, kind="stable")
    ordered, places = values[order], np.arange(len(values))
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(values)]
    first, place = np.empty_like(places), np.empty_like(places)
    first[order], place[order] = np.maximum.accumulate(np.where(begins, places, 0)), places
    return order, first, place
