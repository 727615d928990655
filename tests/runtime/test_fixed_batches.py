"""Batches of one size, and versions."""

import importlib.metadata

import numpy as np

from caphuman_jax.runtime.fixed_batches import batches, filled_up
from caphuman_jax.runtime.versions import versions


def test_the_last_batch_is_filled_up():
    assert list(batches([1, 2, 3, 4, 5], 2)) == [([1, 2], [1, 2]), ([3, 4], [3, 4]), ([5], [5, 5])]
    assert list(batches([], 3)) == []
    assert filled_up("ab", 4) == ["a", "b", "b", "b"]


def test_versions_of_what_is_installed():
    found = versions("numpy", "no-such-distribution", "jax")
    assert list(found) == ["numpy", "jax"]
    assert found["numpy"] == np.__version__ == importlib.metadata.version("numpy")
