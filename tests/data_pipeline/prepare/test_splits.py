import zlib

import numpy as np
import pytest
from cheap_measurer import vector_of

from caphuman_jax.errors import DataError
from data_pipeline.prepare.splits import (
    COST,
    SAME_PERSON,
    check_photos,
    hold_out,
    partners,
    persons_by_recognition,
)


def _photos(counts):
    """Keys, names and vectors of `counts` photos each of people."""
    names = [f"person{i}" for i, count in enumerate(counts) for _ in range(count)]
    vectors = np.stack([vector_of(name.encode(), b"%d" % i) for i, name in enumerate(names)])
    return [f"{i:04d}.jpg" for i in range(len(names))], names, vectors


def _by_hash(name, parts):
    return zlib.crc32(name.encode()) % parts == 0


def test_the_split_is_by_a_hash_of_the_photos_name_and_the_person_goes_with_it():
    keys = [f"folder/{i:04d}.jpg" for i in range(400)]
    vectors = np.stack([vector_of(key.encode()) for key in keys])
    split = hold_out(keys, [""] * 400, 16, vectors)
    assert split.test.tolist() == [_by_hash(key.split("/")[1], 16) for key in keys]
    assert 10 < split.test.sum() < 40 and not split.repeated and not split.moved
    persons = [f"p{i // 4}" for i in range(400)]
    assert hold_out(keys, persons, 16, vectors).test.tolist() == [
        _by_hash(person, 16) for person in persons
    ]
    assert not hold_out(keys, persons, 0, vectors).test.any()


def test_nobody_is_in_both_splits():
    keys, names, vectors = _photos([1, 2, 3] * 40)
    split = hold_out(keys, [""] * len(keys), 8, vectors)
    train = [i for i in range(len(keys)) if not split.test[i] and i not in split.repeated]
    held = np.flatnonzero(split.test)
    assert split.repeated and (vectors[train] @ vectors[held].T).max() <= SAME_PERSON
    assert not {names[i] for i in train} & {names[i] for i in held}
    assert all(names[i] == names[j] and split.test[j] for i, j in split.repeated.items())


def test_people_whom_the_source_tells_apart_stay_apart():
    keys, names, vectors = _photos([4] * 30)
    twins = [f"{name}-{i % 2}" for i, name in enumerate(names)]
    split = hold_out(keys, twins, 4, vectors)
    assert split.test.tolist() == [_by_hash(twin, 4) for twin in twins] and not split.repeated


def test_one_person_in_many_photos_is_trained_on():
    keys, _, vectors = _photos([200] + [1] * 50)
    split = hold_out(keys, [""] * len(keys), 16, vectors)
    wanted = [_by_hash(key, 16) for key in keys]
    assert split.moved == [i for i in range(200) if wanted[i]] and not split.repeated
    assert np.flatnonzero(split.test).tolist() == [i for i in range(200, 250) if wanted[i]]
    few = hold_out(
        keys[: COST + 1], [""] * (COST + 1), 1, vectors[: COST + 1]
    )  # nobody else is left
    assert not few.test.any() and few.moved == list(range(COST + 1))


def test_persons_by_recognition_are_those_who_were_photographed(monkeypatch):
    monkeypatch.setattr("data_pipeline.prepare.splits._BLOCK", 37)
    _, names, vectors = _photos([5, 1, 7, 2] * 20)
    order = np.random.default_rng(0).permutation(len(names))
    found, first = persons_by_recognition(vectors[order]), {}
    assert found.tolist() == [first.setdefault(names[i], place) for place, i in enumerate(order)]


def test_partners_are_the_next_photos_of_the_same_person():
    assert partners(["a", "b", "a", "", "a", "", "b", "a", "a"]).tolist() == [
        [2, 4, 7],
        [6, -1, -1],
        [4, 7, 8],
        [-1, -1, -1],
        [7, 8, 0],
        [-1, -1, -1],
        [1, -1, -1],
        [8, 0, 2],
        [0, 2, 4],
    ]


def test_recognition_among_too_many_photos_is_refused_before_they_are_measured():
    check_photos("given", 10**8)
    check_photos("recognition", 200_000)
    with pytest.raises(DataError, match="200,000 photos, not 200,001"):
        check_photos("recognition", 200_001)
