"""Photos that are there twice: the same file, or the same picture saved again."""

from __future__ import annotations

from array import array

import numpy as np

BITS = 64
NEAR_COSINE = 0.9  # of recognition vectors of one picture; saved again as a JPEG of quality 50 it is above 0.95
_MOST_BANDS = 16  # from so many bits on bands are too narrow to tell pictures apart, and every photo is compared with all firsts


def exact_duplicates(sha256: np.ndarray) -> dict[int, int]:
    """{number: number of the first of the same hash}, for all but the first; hashes (N,) of bytes."""
    order = np.argsort(sha256, kind="stable")
    same = sha256[order[1:]] == sha256[order[:-1]]
    first: dict[int, int] = {}
    for before, number in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        first[number] = first.get(before, before)
    return first


def near_duplicates(dhash: np.ndarray, bits: int, vectors: np.ndarray, among: np.ndarray) -> dict[int, int]:
    """{number: number of the first photo that it repeats}, for photos whose difference hashes (N,) uint64 differ in `bits` of 64 at most.

    Recognition vectors (N, D) float32 of length 1 must agree as well: flat pictures have like hashes. Only `among` (M,), ascending, are compared.
    A photo that itself repeats another is nobody's first. Hashes that differ in k bits agree in one of k + 1 bands at least, so that
    nothing within `bits` is missed; a photo is compared only with firsts that share a band.
    """
    edges = np.linspace(0, BITS, bits + 2).round().astype(int) if bits < _MOST_BANDS else np.array([0, 0])
    firsts: dict[tuple[int, int], array] = {}
    repeats: dict[int, int] = {}
    for number in among.tolist():
        value = int(dhash[number])
        places = [(int(low), value >> int(low) & (1 << int(high - low)) - 1) for low, high in zip(edges[:-1], edges[1:], strict=True)]
        sharing = [np.frombuffer(firsts[place], np.int64) for place in places if place in firsts]
        if sharing:
            candidates = np.unique(np.concatenate(sharing))
            candidates = candidates[np.bitwise_count(dhash[candidates] ^ dhash[number]) <= bits]
            candidates = candidates[vectors[candidates] @ vectors[number] > NEAR_COSINE]
            del sharing  # views would keep the arrays from growing
            if len(candidates):
                repeats[number] = int(candidates[0])
                continue
        for place in places:
            firsts.setdefault(place, array("q")).append(number)
    return repeats
