"""The people suite: groups of different people, and what its figures count."""

import dataclasses

import numpy as np
import pytest

from caphuman_jax.evaluation import bulk, people
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.face import recognition


@pytest.fixture
def recognized(monkeypatch):
    """Every crop that the recognition network is given."""
    seen, network = [], recognition.mobilefacenet

    def counted(crops):
        seen.extend(crop.tobytes() for crop in crops)
        return network(crops)

    monkeypatch.setattr(recognition, "mobilefacenet", counted)
    return seen


@pytest.fixture
def subjects(pipe, astronaut_file):
    """Four people: one photo, under four names and with vectors that differ."""
    one = bulk.subject_reader(pipe)(Photo("a.png", astronaut_file))
    rng, made = np.random.default_rng(0), []
    for name in "abcd":
        vectors = {
            key: rng.normal(size=v.shape).astype(np.float32) for key, v in one.vectors.items()
        }
        made.append(dataclasses.replace(one, name=f"{name}.png", vectors=vectors))
    return made


def test_groups_are_of_different_people(subjects):
    twins = [*subjects[:3], dataclasses.replace(subjects[0], name="twin.png")]
    for count in (2, 3):
        made = people.groups(twins, count, 6, 0)
        assert len(made) == 6 and all(len(set(group)) == count for group in made)
        assert not any({0, 3} <= set(group) for group in made)
    assert made == people.groups(twins, 3, 6, 0) and people.groups(twins, 4, 2, 0) == []


def test_a_reference_is_recognized_once(pipe, astronaut_file, recognized):
    """Once as it conditions the model and once framed like a generated picture: two crops."""
    subject = bulk.subject_reader(pipe)(Photo("a.png", astronaut_file))
    subject.person.warnings()
    assert len(recognized) == len(set(recognized)) == 2
    own = recognition.mobilefacenet_crop(subject.picture, subject.person.landmarks)
    assert own.tobytes() in recognized


def test_people_are_measured_in_their_places(pipe, subjects, tmp_path, recognized):
    own = recognition.mobilefacenet_crop(subjects[0].picture, subjects[0].person.landmarks)
    recognized.clear()
    made = people.run_people(pipe, [], subjects, tmp_path, counts=(2, 3), steps=2)
    assert own.tobytes() not in recognized
    assert [len(group.people) for group in made] == [2, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"people_2_00.png", "people_3_00.png"}
    assert people.compute(pipe, subjects, made)["people"]["2"]["pictures"] == 2


def test_what_counts_as_right(pipe, subjects):
    """Of three places one has the wrong face and one none; the asked one gained most in one of two
    pictures.
    """
    group = lambda nearest, gained: people.Group(
        (3, 1, 0),
        1,
        np.array([True, True, False]),
        {name: np.array(nearest) for name in ("dlib", "mobilefacenet")},
        np.array(gained),
    )
    made = [group([0, 0, -1], [0.1, 0.5, np.nan]), group([0, 1, -1], [0.9, 0.5, np.nan])]
    found = people.compute(pipe, subjects, made)["people"]["3"]
    assert found["right"] == pytest.approx(3 / 6) and found["attribute"] == 0.5
    assert found["faces"] == pytest.approx(2 / 3) and found["chance"] == pytest.approx(1 / 3)
