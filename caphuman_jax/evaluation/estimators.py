"""Estimators of an evaluation: NumPy on arrays, with chance levels and intervals.

A smaller distance means more alike. A result without a face has NaN distances and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[..., float]

RESAMPLES, SHUFFLES = 500, 100
"""Times that people are drawn with replacement for an interval, and that results are assigned to
requests at random for the level of chance.
"""


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive score is above a negative one. Ties count
    half; NaN if a side is empty."""
    positive, negative = np.ravel(positive), np.sort(np.ravel(negative))
    if not len(positive) or not len(negative):
        return float("nan")
    return float(_below(positive, negative).sum() / (len(positive) * len(negative)))


def people_auc(
    distance: np.ndarray, person: np.ndarray, comparable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wins and pairs (P, P) that make the AUC of "own photo against other people's", by people, so
    that it can be resampled.

    Args:
        distance: (N, P) of N results to the reference photos of P people.
        person: (N,) whose result each is.
        comparable: (N, P) False where the column is left out of the other people (the own photo
        always is).

    Own distances of person i (a row, i) are compared with other people's distances to the results
    of person j: wins[i, j] of pairs[i, j] are won (smaller; ties half). Missing faces (NaN rows)
    lose every comparison of their own photo and are left out of the other side. AUC = wins.sum() /
    pairs.sum()."""
    people = distance.shape[1]
    own = distance[np.arange(len(person)), person]
    others = comparable.copy()
    others[np.arange(len(person)), person] = False
    scores = np.where(np.isfinite(own), -own, -np.inf)
    wins, pairs = np.zeros((people, people)), np.zeros((people, people))
    for j in range(people):
        rows = person == j
        negative = -distance[rows][others[rows]]
        negative = np.sort(negative[np.isfinite(negative)])
        wins[:, j] = np.bincount(person, _below(scores, negative), people)
        pairs[:, j] = np.bincount(person, minlength=people) * len(negative)
    return wins, pairs


def closer_people(
    distance: np.ndarray, person: np.ndarray, comparable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each result, how many other people's photos are at least as near as the own one, and how
    many others there are.

    Arguments as of `people_auc`. Every one of them is nearer where the result shows no face.
    """
    rows = np.arange(len(person))
    own = distance[rows, person]
    others = comparable.copy()
    others[rows, person] = False
    nearer = np.where(
        np.isfinite(own), np.sum((distance <= own[:, None]) & others, axis=1), others.sum(axis=1)
    )
    return nearer.astype(int), others.sum(axis=1)


def rank_one(nearer: np.ndarray, others: np.ndarray, people: int | None = None) -> np.ndarray:
    """(N,) probability that the own photo is the nearest among it and `people` - 1 others, drawn at
    random from all others.

    Exact, without drawing: C(others - nearer, people - 1) / C(others, people - 1). None: among all.
    NaN where there are too few others."""
    if people is None:
        return (nearer == 0).astype(float)
    left = others[:, None] - np.arange(people - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.prod(np.clip(left - nearer[:, None], 0, None) / left, axis=1)
    return np.where(others >= people - 1, chance, np.nan)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, over the pairs without NaN; NaN for fewer than three or where one side is
    constant.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def mean_error(asked: np.ndarray, measured: np.ndarray) -> float:
    """Mean absolute difference of the pairs without NaN."""
    return _reduce(np.mean, asked, measured)


def median_error(asked: np.ndarray, measured: np.ndarray) -> float:
    """Median absolute difference of the pairs without NaN."""
    return _reduce(np.median, asked, measured)


def ninetieth_error(asked: np.ndarray, measured: np.ndarray) -> float:
    """The absolute difference that nine in ten pairs without NaN stay below."""
    return _reduce(lambda e: np.quantile(e, 0.9), asked, measured)


def bias(asked: np.ndarray, measured: np.ndarray) -> float:
    """Mean of measured minus asked over the pairs without NaN."""
    difference = (measured - asked)[np.isfinite(measured - asked)]
    return float(difference.mean()) if len(difference) else float("nan")


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of Gaussians with the means and covariances of (N, D) and (M, D):
    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) (Heusel et al., arXiv 1706.08500, eq. 6).
    """
    (one, first), (two, second) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    # The root's trace is the sum of the roots of the eigenvalues of C1 C2, which are those of a
    # symmetric product, so that small covariances of few vectors do no harm.
    values, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(np.clip(values, 0, None))) @ axes.T
    product = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(np.clip(product, 0, None)).sum()
    return float(((one - two) ** 2).sum() + trace)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of (N, D) and (M, D) with the kernel
    (x·y/D + 1)³ (Binkowski et al., arXiv 1801.01401, eq. 4).
    """
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    n, m = len(a), len(b)
    own = lambda x, k: (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))
    between = kernel(a, b).sum() / (n * m)
    return float(own(a, kernel(a, a)) + own(b, kernel(b, b)) - 2 * between)


def interval(
    statistic: Statistic,
    columns: Sequence[np.ndarray],
    person: np.ndarray,
    seed: int = 0,
) -> list[float]:
    """95% bootstrap interval of statistic(*columns). People are drawn with replacement, with all of
    their rows.
    """
    groups = [np.flatnonzero(person == p) for p in np.unique(person)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES if groups else 0):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        values.append(statistic(*(c[rows] for c in columns)))
    return _middle(values)


def ratio_interval(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> list[float]:
    """95% bootstrap interval over people of part.sum() / whole.sum(), both (P, P), as from
    `people_auc`.
    """
    rng = np.random.default_rng(seed)
    people = len(part)
    values = []
    for _ in range(RESAMPLES):
        count = np.bincount(rng.integers(people, size=people), minlength=people).astype(float)
        weight = np.outer(count, count)
        total = np.sum(weight * whole)
        values.append(np.sum(weight * part) / total if total else np.nan)
    return _middle(values)


def chance(statistic: Statistic, asked: np.ndarray, measured: np.ndarray, seed: int = 0) -> float:
    """Mean of statistic(asked, measured) with the results assigned to requests at random."""
    rng = np.random.default_rng(seed)
    values = np.array(
        [statistic(asked, measured[rng.permutation(len(measured))]) for _ in range(SHUFFLES)]
    )
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def summary(
    statistic: Statistic,
    asked: np.ndarray,
    measured: np.ndarray,
    person: np.ndarray,
    seed: int = 0,
    own: np.ndarray | None = None,
) -> dict:
    """{"value", "interval", "chance", "copied"} of a statistic of asked and measured; "copied": of
    asked and the reference's `own`.
    """
    return {
        "value": statistic(asked, measured),
        "interval": interval(statistic, (asked, measured), person, seed),
        "chance": chance(statistic, asked, measured, seed),
        "copied": float("nan") if own is None else statistic(asked, own),
    }


def _below(scores: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """How many of the ordered values each score is above; ties count half."""
    return (
        np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    ) / 2


def _reduce(how, asked, measured):
    error = np.abs(measured - asked)
    error = error[np.isfinite(error)]
    return float(how(error)) if len(error) else float("nan")


def _middle(values):
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return (
        [float(v) for v in np.quantile(values, (0.025, 0.975))]
        if len(values)
        else [float("nan")] * 2
    )
