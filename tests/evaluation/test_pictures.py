"""Pictures of an evaluation are made and measured exactly once, also where it was stopped."""

import contextlib
import dataclasses
import json
import threading

import numpy as np
import pytest

from caphuman_jax.errors import SettingError
from caphuman_jax.evaluation import bulk, pictures, stored
from caphuman_jax.evaluation.asked import of_requests
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.prompt_suite import all_requests
from caphuman_jax.face import arcface
from caphuman_jax.pipeline.pipeline import Pipeline

HEADS, PROMPTS = ("own", "yaw=12,smile=0.5", "random"), ("a photo of a person", "a drawing")


@pytest.fixture(scope="module")
def subjects(pipe, astronaut_file):
    one = bulk.subject_reader(pipe)(Photo("a.png", astronaut_file))
    return [one, dataclasses.replace(one, name="b.png")]


@pytest.fixture
def measured(monkeypatch):
    """The number of images of every call that measures."""
    seen, measure, make = [], pictures.measure_images, Pipeline.make
    computes = threading.Lock()

    @contextlib.contextmanager
    def alone():  # programs of two threads of a CPU may wait for each other for ever
        assert computes.acquire(blocking=False), "two threads compute at the same time"
        try:
            yield
        finally:
            computes.release()

    def counted(model, images, head_of, count):
        with alone():
            seen.append(count)
            return measure(model, images, head_of, count)

    def made_alone(*args):
        with alone():
            return make(*args)

    monkeypatch.setattr(Pipeline, "make", made_alone)
    monkeypatch.setattr(pictures, "measure_images", counted)
    monkeypatch.setattr(pictures, "_MEASURED_AT_A_TIME", 2)
    return seen


def test_a_stopped_evaluation_resumes_and_makes_everything_once(pipe, subjects, tmp_path, measured):
    requests = all_requests(2, HEADS, PROMPTS, 1)
    asked = of_requests(pipe.head_model, subjects, requests, 0)
    make = lambda folder, stopped=lambda: False, **more: pictures.make_and_measure(
        pipe, subjects, asked, folder, seed=0, batch=1, stopped=stopped, **more
    )
    made = lambda folder: sorted((folder / "pictures").glob("*.png"))
    begun = make(tmp_path / "a", lambda: len(made(tmp_path / "a")) >= 5)
    assert not begun.done and 0 < len(begun.outcomes) < len(requests) == 12
    assert sum(measured) == len(begun.outcomes)
    before = {path: path.stat().st_mtime_ns for path in made(tmp_path / "a")}

    whole = make(tmp_path / "a")
    assert whole.done and not whole.failed and len(whole.outcomes) == 12
    assert sum(measured) == 12  # none twice
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [o.request for o in whole.outcomes] == requests
    lines = (tmp_path / "a" / "pictures" / "index.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 12

    other = make(tmp_path / "b")
    for path in made(tmp_path / "b"):
        assert path.read_bytes() == (tmp_path / "a" / "pictures" / path.name).read_bytes()
    for a, b in zip(whole.outcomes, other.outcomes):
        np.testing.assert_array_equal(a.measured.head.angles, b.measured.head.angles)
        assert a.file == b.file and (tmp_path / "a" / a.file).is_file()
    with pytest.raises(SettingError, match="other requests"):
        make(tmp_path / "a", sampling={"steps": 1})
    with pytest.raises(SettingError, match="steps"):
        make(tmp_path / "c", sampling={"steps": -1})


def test_pictures_are_those_of_the_pipeline(pipe, subjects, tmp_path, measured):
    (request,) = all_requests(1, HEADS[1:2], PROMPTS[:1], 1)
    asked = of_requests(pipe.head_model, subjects, [request], 0)
    done = pictures.make_and_measure(pipe, subjects, asked, tmp_path, seed=0, batch=1)
    alone = pipe(
        reference=subjects[0].person,
        prompt=request.prompt,
        head={"yaw": 12, "expression": "smile=0.5"},
        seed=request.seed,
    )
    picture = pictures.read_photo(tmp_path / done.outcomes[0].file)
    np.testing.assert_array_equal(picture, alone.images[0])
    asked = done.outcomes[0].asked
    assert asked.angles[0] == pytest.approx(12, abs=1e-3)


def test_measurements_in_a_file(pipe, subjects, tmp_path, monkeypatch):
    of_user = lambda crops: crops.reshape(1, -1)[:, :512] / np.float32(255)
    monkeypatch.setattr(arcface, "find", lambda: of_user)
    model, blank = pipe.head_model, np.full((64, 64, 3), 90, np.uint8)
    images = [subjects[0].picture, blank]
    found = pictures.measure_images(model, images, pipe.head_of)
    found[0].values["array"] = np.arange(3)
    found[1].values["array"] = np.arange(3) + 1
    stored.save(tmp_path / "m.npz", ["x", "y"], found)
    assert found[0].vectors["arcface"].shape == found[1].vectors["arcface"].shape == (512,)
    assert found[0].vectors["arcface"].any() and np.isnan(found[1].vectors["arcface"]).all()
    for (name, read), wanted in zip(stored.load(tmp_path / "m.npz"), found):
        assert name in "xy" and read.faces == wanted.faces
        for field in ("angles", "position", "expression", "light"):
            np.testing.assert_array_equal(getattr(read.head, field), getattr(wanted.head, field))
        for recognizer, vector in wanted.vectors.items():
            np.testing.assert_array_equal(read.vectors[recognizer], vector)
        assert read.values["background"] == wanted.values["background"]
        np.testing.assert_array_equal(read.values["array"], wanted.values["array"])
