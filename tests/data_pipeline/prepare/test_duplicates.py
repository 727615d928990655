import numpy as np
import pytest

from data_pipeline.prepare.duplicates import NEAR_COSINE, exact_duplicates, near_duplicates


def test_exact_duplicates_name_the_first():
    hashes = np.array([b"a", b"b", b"a", b"c", b"b", b"a"]).astype("S32")
    assert (
        exact_duplicates(hashes) == {2: 0, 4: 1, 5: 0}
        and exact_duplicates(hashes[:1]) == exact_duplicates(hashes[:0]) == {}
    )


@pytest.mark.parametrize("bits", [0, 2, 5, 20])
def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(bits):
    rng = np.random.default_rng(bits)
    dhash = rng.integers(0, 2**64, 300, np.uint64, endpoint=False)
    for i in range(0, 300, 3):  # copies that differ in 0 to 8 bits
        dhash[i + 1] = dhash[i]
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            dhash[i + 1] ^= np.uint64(1) << np.uint64(bit)
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    vectors[1::3] = np.where(
        np.arange(100)[:, None] % 4, vectors[::3], -vectors[::3]
    )  # one copy in four is of another face
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    among = np.flatnonzero(np.arange(300) % 7)
    expected = {}
    for i in among:
        for j in among:
            if (
                i < j
                and i not in expected
                and j not in expected
                and bin(int(dhash[i] ^ dhash[j])).count("1") <= bits
                and vectors[i] @ vectors[j] > NEAR_COSINE
            ):
                expected[j] = i
    assert near_duplicates(dhash, bits, vectors, among) == expected
    assert len(expected) > 3


def test_what_repeats_a_repetition_is_kept_if_the_first_is_too_far():
    dhash = np.array([0b0000, 0b0011, 0b1111], np.uint64)
    assert near_duplicates(dhash, 2, np.ones((3, 1), np.float32), np.arange(3)) == {1: 0}


def test_many_alike_hashes_are_not_all_paired():
    dhash = np.zeros(5000, np.uint64)
    vectors = np.eye(5000, 16, dtype=np.float32)
    vectors[16:, 0] = 1
    assert near_duplicates(dhash, 2, vectors, np.arange(5000)) == {i: 0 for i in range(16, 5000)}
