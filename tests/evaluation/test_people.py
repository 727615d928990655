"""The people suite: groups of different people, and what its figures count."""

import dataclasses

import numpy as np
import pytest

from caphuman_jax.evaluation import bulk, people
from caphuman_jax.evaluation.metrics import several_people
from caphuman_jax.evaluation.metrics.base import Run
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.face import attributes, recognition


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


def test_what_counts_as_right(pipe, subjects):
    """Of three places one has the wrong face and one none; the asked one gained most in one of two
    pictures.
    """
    worn = attributes.names().index("glasses")
    gain = np.eye(len(attributes.names()))[worn]
    scores = lambda gained, one: {"worn": one.values["worn"] + gained * gain}
    outcomes = []
    for faces, gains in (((0, 0, None), (0.1, 0.5, np.nan)), ((0, 1, None), (0.9, 0.5, np.nan))):
        group = (3, 1, 0)
        for place, (shows, gained) in enumerate(zip(faces, gains)):
            who = group[place]
            prompt = "a photo of a person" + (" wearing glasses" if place == 1 else "")
            request = Request(len(outcomes), who, "3 people", prompt, 0, group)
            vectors = subjects[who if shows is None else group[shows]].vectors
            if shows is None:
                vectors = {name: np.full_like(v, np.nan) for name, v in vectors.items()}
            head = HeadParams.of(pipe.head_model, subjects[who].head)
            values = scores(gained, subjects[who])
            measured = ImageMeasurement(int(shows is not None), head, vectors, values)
            outcomes.append(Outcome(request, who, head, head, measured))
    run = Run(pipe.head_model, subjects, outcomes)
    results = several_people.compute(run)
    found = results["people"]["3"]
    assert found["pictures"] == 2 and found["chance"] == pytest.approx(1 / 3)
    assert found["right"] == pytest.approx(3 / 6) and found["attribute"] == 0.5
    assert found["faces"] == pytest.approx(2 / 3)
    assert results["in_place"]["right"]["value"] == pytest.approx(3 / 6)
    assert results["in_place"]["right"]["copied"] == 1
    alone = dataclasses.replace(outcomes[0], request=Request(0, 3, "own", "", 0))
    assert several_people.compute(dataclasses.replace(run, outcomes=[alone])) == {}
