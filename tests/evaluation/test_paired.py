"""Tests of paired differences against SciPy, brute force and known answers."""

import itertools

import numpy as np
import pytest
from scipy import stats

from caphuman_jax.evaluation import paired


def mean(values, axis=-1):
    return np.mean(values, axis=axis)


@pytest.mark.parametrize("people", [2, 6, 11, 40])
def test_sign_flips_are_scipys(people):
    differences = np.random.default_rng(people).normal(0.4, 1, people)
    expected = stats.permutation_test(
        (differences,), mean, permutation_type="samples", n_resamples=20_000, vectorized=True
    ).pvalue
    exact = people <= paired.EXACT_UP_TO
    assert paired.sign_flip_p(differences) == pytest.approx(expected, abs=1e-12 if exact else 0.01)


def test_sign_flips_by_brute_force_with_ties():
    differences = np.array([0.1, 0.2, 0.2, -0.1, 0.0])
    sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([abs(total) >= 0.4 - 1e-9 for total in sums])
    assert paired.sign_flip_p(differences) == expected
    assert paired.sign_flip_p(np.zeros(30)) == 1.0
    assert np.isnan(paired.sign_flip_p(np.zeros(0)))


def test_the_least_p_is_reached():
    for people in (1, 5, 12, 60):
        assert paired.sign_flip_p(np.ones(people)) == pytest.approx(paired.least_p(people))


def test_the_bootstrap_is_scipys():
    differences = np.random.default_rng(3).exponential(1, 25)
    expected = stats.bootstrap(
        (differences,), mean, n_resamples=10_000, method="percentile", vectorized=True
    ).confidence_interval
    width = expected.high - expected.low
    assert paired.bootstrap_interval(differences) == pytest.approx(
        (expected.low, expected.high), abs=0.05 * width
    )
    assert np.isnan(paired.bootstrap_interval(differences[:1])).all()


def test_of_equal_runs_one_in_twenty_differs():
    rng = np.random.default_rng(0)
    p = [paired.sign_flip_p(rng.normal(0, 1, 9)) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm_is_the_worked_example():
    # 0.01 × 4; 0.015 × 3; 0.03 × 2; and 0.04 × 1, which may not be less than the one before.
    adjusted = paired.holm([0.03, 0.01, np.nan, 0.04, 0.015])
    np.testing.assert_allclose(adjusted, [0.06, 0.04, np.nan, 0.06, 0.045])
    np.testing.assert_array_equal(paired.holm([0.6, 0.9]), [1.0, 1.0])
    assert not len(paired.holm([]))


def test_each_person_counts_once():
    values = np.array([1.0, 3.0, np.nan, 10.0, np.nan])
    np.testing.assert_array_equal(
        paired.person_means(values, np.array([0, 0, 0, 2, 1])), [2.0, 10.0]
    )
