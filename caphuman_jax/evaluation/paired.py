"""Tests of paired differences between two runs. People are the units: pictures of one person are
not independent of each other, so each person counts once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

BOOTSTRAPS = 10_000
FLIPS = 20_000
EXACT_UP_TO = 14  # people: 2 ** 14 patterns of signs are fewer than FLIPS
_AT_ONCE = 2**21  # numbers in a block of resampled people or signs


def person_means(values: np.ndarray, person: np.ndarray) -> np.ndarray:
    """(P,) mean of the finite values of each person who has one, by the person's number.

    Args:
        values: (N,) of pictures; NaN for none.
        person: (N,) numbers of the people.
    """
    finite = np.isfinite(values)
    count = np.bincount(person[finite])
    total = np.bincount(person[finite], values[finite])
    return total[count > 0] / count[count > 0]


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of differences (P,) by the percentile bootstrap over people; NaN
    for fewer than two.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    people = len(differences)
    if people < 2:
        return (float("nan"), float("nan"))
    rng, means = np.random.default_rng([seed, people]), []
    for count in _blocks(BOOTSTRAPS, people):
        means.append(differences[rng.integers(people, size=(count, people))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return (float(low), float(high))


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip permutation test: how often the mean of differences (P,)
    is at least as far from 0 with their signs chosen at random.

    Exact over all 2 ** P patterns for at most EXACT_UP_TO people; from FLIPS random ones otherwise,
    counted as (1 + hits) / (1 + FLIPS), which is never 0 (Phipson and Smyth, 2010). NaN without
    people.
    """
    people = len(differences)
    if not people:
        return float("nan")
    reached = abs(differences.sum()) * (1 - 1e-9) - 1e-12
    if people <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=people)))
        return float(np.mean(np.abs(signs @ differences) >= reached))
    rng, hits = np.random.default_rng([seed, people, 1]), 0
    for count in _blocks(FLIPS, people):
        signs = rng.integers(2, size=(count, people)) * 2.0 - 1.0
        hits += int(np.sum(np.abs(signs @ differences) >= reached))
    return (1 + hits) / (1 + FLIPS)


def least_p(people: int) -> float:
    """The smallest p-value that `sign_flip_p` can give for some number of people."""
    return 2.0 ** (1 - people) if 0 < people <= EXACT_UP_TO else 1 / (1 + FLIPS)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """(N,) p-values adjusted so that the chance of any false difference stays below their limit.
    NaN stays NaN and does not count as a test.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    given = np.asarray(p_values, np.float64)
    adjusted = np.full(len(given), np.nan)
    tested = np.flatnonzero(np.isfinite(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return adjusted


def _blocks(total: int, width: int) -> list[int]:
    size = max(1, _AT_ONCE // width)
    return [min(size, total - start) for start in range(0, total, size)]
