"""Statistics against brute force and known answers."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg

from caphuman_jax.evaluation import estimators


def brute_auc(positive, negative):
    return np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative])


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 37), rng.integers(0, 5, 53)  # ties on purpose
    assert estimators.auc(positive, negative) == pytest.approx(brute_auc(positive, negative))
    assert estimators.auc([2.0, 3.0], [0.0, 1.0]) == 1
    assert estimators.auc([1.0], [1.0]) == 0.5
    assert math.isnan(estimators.auc([], [1.0]))


def test_frechet_distance_against_scipy_and_a_closed_form():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((5, 5))
    a, b = rng.standard_normal((80, 5)) @ mix, rng.standard_normal((70, 5)) + 0.5
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(c1 @ c2).real
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert estimators.frechet_distance(a, b) == pytest.approx(wanted)
    assert estimators.frechet_distance(a, a + 3) == pytest.approx(5 * 9)  # of shifted Gaussians
    # Scaled by s: tr(C) (1 - s)²; fewer vectors than numbers do no harm.
    few = rng.standard_normal((4, 30))
    few -= few.mean(0)
    wanted = np.trace(np.cov(few, rowvar=False)) * 0.25
    assert estimators.frechet_distance(few, few / 2) == pytest.approx(wanted)


def test_kernel_distance_against_every_pair():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 4)), rng.standard_normal((7, 4)) + 1
    kernel = lambda x, y: (np.dot(x, y) / 4 + 1) ** 3
    pairs = lambda x: np.mean([kernel(one, two) for one, two in itertools.permutations(x, 2)])
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert estimators.kernel_distance(a, b) == pytest.approx(pairs(a) + pairs(b) - 2 * between)
    one, two = rng.standard_normal((2, 300, 4))
    assert abs(estimators.kernel_distance(one, two)) < 0.1
    assert estimators.kernel_distance(one, two + 1) > 0.5


def people(seed=0, results=40, count=9, noise=0.7):
    rng = np.random.default_rng(seed)
    references = rng.standard_normal((count, 16))
    person = rng.integers(0, count, results)
    vectors = references[person] + noise * 4 * rng.standard_normal((results, 16)) / 4
    distance = np.linalg.norm(vectors[:, None] - references, axis=-1)
    return distance, person, np.ones((results, count), bool)


def brute_people_auc(distance, person, comparable):
    won = total = 0.0
    for i, j in itertools.product(range(len(person)), repeat=2):
        for column in range(distance.shape[1]):
            if (
                column == person[j]
                or not comparable[j, column]
                or not np.isfinite(distance[j, column])
            ):
                continue
            own, other = distance[i, person[i]], distance[j, column]
            total += 1
            won += 0 if not np.isfinite(own) else 1 if own < other else 0.5 if own == other else 0
    return won / total


@pytest.mark.parametrize("missing", [False, True])
def test_people_auc_against_every_pair(missing):
    distance, person, comparable = people(noise=2.0)
    comparable[:, 3] = False
    if missing:
        distance[[2, 7, 11]] = np.nan
    wins, pairs = estimators.people_auc(distance, person, comparable)
    assert wins.sum() / pairs.sum() == pytest.approx(brute_people_auc(distance, person, comparable))


def test_identical_vectors_have_auc_one_and_unrelated_ones_a_half():
    distance, person, comparable = people(noise=0.0)
    wins, pairs = estimators.people_auc(distance, person, comparable)
    assert wins.sum() == pairs.sum()
    assert estimators.ratio_interval(wins, pairs) == [1.0, 1.0]
    distance, person, comparable = people(results=900, count=40)
    shuffled = np.random.default_rng(1).permutation(person)
    wins, pairs = estimators.people_auc(distance, shuffled, comparable)
    assert wins.sum() / pairs.sum() == pytest.approx(0.5, abs=0.03)


def test_rank_one_among_all_and_among_some_against_drawing():
    distance, person, comparable = people(results=6, count=9, noise=2.5)
    distance[5] = np.nan
    nearer, others = estimators.closer_people(distance, person, comparable)
    best = np.array(
        [np.isfinite(row).all() and np.argmin(row) == p for row, p in zip(distance, person)]
    )
    np.testing.assert_array_equal(estimators.rank_one(nearer, others), best)
    for i, (row, p) in enumerate(zip(distance, person)):
        sets = list(itertools.combinations([c for c in range(9) if c != p], 3))
        share = np.mean([all(row[p] < row[c] for c in chosen) for chosen in sets])
        assert estimators.rank_one(nearer, others, 4)[i] == pytest.approx(share)
    assert np.isnan(estimators.rank_one(nearer, others, 10)).all()
    assert estimators.rank_one(nearer, others)[5] == 0


def test_errors_know_missing_values():
    asked, measured = np.array([0.0, 10.0, -5.0, 3.0]), np.array([1.0, 13.0, np.nan, 3.0])
    assert estimators.mean_error(asked, measured) == pytest.approx(4 / 3)
    assert estimators.median_error(asked, measured) == 1
    assert estimators.bias(asked, measured) == pytest.approx(4 / 3)
    assert estimators.ninetieth_error(asked, measured) == pytest.approx(2.6)
    assert math.isnan(estimators.mean_error(asked, np.full(4, np.nan)))


def test_correlation():
    x = np.array([1.0, 2, 3, 4, np.nan])
    assert estimators.correlation(x, 2 * x + 1) == pytest.approx(1)
    assert estimators.correlation(x, -x) == pytest.approx(-1)
    y = np.array([2.0, 1, 4, 3, 9])
    assert estimators.correlation(x, y) == pytest.approx(0.6)
    assert math.isnan(estimators.correlation(x, np.ones(5)))


def test_chance_of_shuffled_pairs():
    rng = np.random.default_rng(0)
    asked = rng.uniform(-20, 20, 300)
    assert estimators.mean_error(asked, asked) == 0
    assert estimators.chance(estimators.mean_error, asked, asked) == pytest.approx(
        40 / 3, rel=0.1
    )  # of two uniform draws
    assert estimators.chance(estimators.correlation, asked, asked) == pytest.approx(0, abs=0.03)


def test_interval_draws_whole_people():
    person = np.repeat(np.arange(60), 4)
    values = np.random.default_rng(0).standard_normal(60)[person]  # a person's rows are alike
    low, high = estimators.interval(np.mean, [values], person)
    error = values[::4].std() / 60**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < values.mean() < high
    assert estimators.interval(np.mean, [values], person, seed=1) == estimators.interval(
        np.mean, [values], person, seed=1
    )


def test_ratio_interval_covers_the_value():
    wins, pairs = estimators.people_auc(*people(results=200, count=20, noise=2.0))
    low, high = estimators.ratio_interval(wins, pairs)
    assert low < wins.sum() / pairs.sum() < high and high - low < 0.2
