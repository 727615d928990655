"""Suites of other kinds: what is asked for, where each face is measured, and that a run that broke
resumes and equals one that did not.
"""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.evaluation import bulk, estimators, pictures, whole
from caphuman_jax.evaluation.asked import Look
from caphuman_jax.evaluation.comparison import compare
from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.outcome import Outcome
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.scored_run import read_run
from caphuman_jax.evaluation.suites.kinds import KINDS
from caphuman_jax.evaluation.suites.suite_file import SuiteFile
from caphuman_jax.io.images import read_photo

SUITES = {
    "edit": {"changes": ({"yaw": 20}, {"pitch": -10, "expression": "smile=0.9"})},
    "small-faces": {"sizes": (64, 160), "sampling": {"detail": 0.5}},
    "people": {"counts": (2,), "per_person": 2},
}
FACTS = {
    "suite": "",
    "settings": {"model": "", "seed": 0},
    "model": {"sha256": ""},
    "versions": {},
    "skipped": {},
    "seconds": {},
}


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(scope="module")
def subjects(pipe, astronaut_file):
    """Two people: one photo, under two names and with vectors that differ."""
    one = bulk.subject_reader(pipe)(Photo("a.png", astronaut_file))
    rng, made = np.random.default_rng(0), []
    for name in "ab":
        noise = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in one.vectors.items()}
        made.append(dataclasses.replace(one, name=f"{name}.png", vectors=noise))
    return made


@pytest.fixture
def evaluation(pipe, subjects, astronaut_file, monkeypatch):
    monkeypatch.setattr(estimators, "RESAMPLES", 5)
    monkeypatch.setattr(estimators, "SHUFFLES", 5)
    monkeypatch.setattr(pictures, "_MEASURED_AT_A_TIME", 1)  # every picture is a unit

    def of(kind):
        suite = SuiteFile("own", "own", kind, **({"per_person": 1} | SUITES[kind]))
        asked = KINDS[kind].ask(
            pipe, subjects, per_person=suite.per_person, sampling=suite.sampling, **suite.parameters
        )
        photos = [Photo(one.name, astronaut_file) for one in subjects]
        return whole.Evaluation(pipe, 1, suite, subjects, asked, FACTS, photos=photos)

    return of


def make(one, folder):
    return pictures.make_and_measure(
        one.pipe,
        one.subjects,
        one.asked,
        folder,
        seed=0,
        batch=1,
        sampling=one.suite.sampling,
        look=one.kind.look,
        photos=one.photos,
    )


@pytest.mark.parametrize("kind", SUITES)
def test_a_broken_run_resumes_and_equals_the_undisturbed_one(
    evaluation, tmp_path, monkeypatch, kind
):
    one = evaluation(kind)
    made = make(one, tmp_path / "a").outcomes
    assert len(made) == sum(len(asked.requests) for asked in one.asked)
    calls, measure = [], pictures.measure_images

    def killed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Killed
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "measure_images", killed)
        with pytest.raises(Killed):
            make(one, tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b/pictures").glob("*.png")}
    assert before  # some of which were measured
    again = make(one, tmp_path / "b").outcomes
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for first, second in zip(made, again, strict=True):
        assert first.request == second.request and first.file == second.file
        assert first.frame == second.frame
        files = [(tmp_path / name / first.file).read_bytes() for name in "ab"]
        assert files[0] == files[1]
        for head in ("asked", "own"):
            np.testing.assert_equal(vars(getattr(first, head)), vars(getattr(second, head)))
        np.testing.assert_equal(first.measured.values, second.measured.values)
    if kind == "edit":
        turned = [one.asked.angles - one.own.angles for one in made]
        np.testing.assert_allclose([turned[0][0], turned[1][1]], [20, -10], atol=0.5)
        assert all(one.measured.values["changed-outside"] == 0 for one in made)
    if kind == "people":
        left, right = made[:2]
        assert left.asked.position[0] < 0.5 < right.asked.position[0]
        squares = [read_photo(tmp_path / "a" / row.file) for row in (left, right)]
        assert squares[0].shape == squares[1].shape and (squares[0] != squares[1]).any()


def test_runs_of_other_kinds_are_reported_and_compared(evaluation, tmp_path):
    one = evaluation("people")
    document = one.run(tmp_path / "a", None, lambda: False)
    assert document["results"]["people"]["2"]["pictures"] == 2
    assert set(document["goals"]) == {goal.label for goal in one.kind.goals}
    run = read_run(tmp_path / "a")
    assert [row.head for row in run.pictures[:2]] == ["2 people, place 1", "2 people, place 2"]
    assert all((tmp_path / "a" / row.file).is_file() for row in run.pictures)
    assert {"right-place"} <= {measure.name for measure in run.measures}
    assert (tmp_path / "a" / "report.html").is_file()
    comparison = compare([run, run])
    assert comparison.differences and all(not one.difference for one in comparison.differences)


def test_positions_are_those_in_the_picture(pipe, astronaut):
    """The square of a face is measured as the whole picture is."""
    small = lambda image: np.asarray(Image.fromarray(image).resize((256, 256)))
    left, top, side = 80, 10, 330
    crop = astronaut[top : top + side, left : left + side]
    images = [small(astronaut), small(np.ascontiguousarray(crop))]
    whole_picture, measured = measure_images(pipe.head_model, images, pipe.head_of)
    frame = (left / 512, top / 512, side / 512, side / 512)
    found = Look(images[1], measured.head, frame, {"seam": 1.5}).in_picture(measured)
    np.testing.assert_allclose(found.head.position, whole_picture.head.position, atol=0.02)
    asked = whole_picture.head  # what is shown next to the square is framed as the square is
    outcome = Outcome(None, 0, asked, asked, found, None, frame)
    position = outcome.asked_in_square.position
    np.testing.assert_allclose(position, measured.head.position, atol=0.04)
    assert found.values["seam"] == 1.5 and found.values["worn"] is measured.values["worn"]
