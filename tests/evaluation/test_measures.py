"""Measures on cases with a known answer: copies of the reference photo, results that are shuffled,
and a measure that a test adds.
"""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from caphuman_jax.evaluation import estimators, metrics, statistics, summary
from caphuman_jax.evaluation.metrics import (
    diversity,
    gaze,
    memorization,
    prompt_details,
    registry,
    sharpness,
    turn_by_geometry,
)
from caphuman_jax.evaluation.metrics.base import Run, Shown, copier, shuffled, unit
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.head import camera
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.head.pose import rotation_matrix
from caphuman_jax.io import atomic

PEOPLE, EACH = 60, 4
PROMPTS = (
    "a photo of a person, blue background",
    "a black-and-white photo of a person in dark blue clothes",
    "a photo of a person with long dark hair, wearing glasses",
    "a photo of a person with a beard and a moustache",
)


def values(rng):
    return {
        "chroma": float(rng.uniform(0, 20)),
        "background": str(rng.choice(["blue", "red", "dark blue", "green"])),
        "clothes": str(rng.choice(["blue", "red", "dark blue", "green"])),
        "hair": str(rng.choice(["dark", "grey"])),
        "worn": rng.standard_normal(5),
        "geometry": rng.uniform(-30, 30, 3),
        "sharpness": float(rng.uniform(5, 20)),
        "thumbnail": rng.integers(0, 255, (4, 4, 3), np.uint8),
    }


def head(rng, model):
    return HeadParams(
        rng.uniform(-26, 26, 3),
        rng.uniform(0.4, 0.6, 3),
        rng.uniform(0, 1, len(model.expression_names)),
        rng.uniform(-1, 1, 2),
    )


def unrelated(seed=0) -> Run:
    """Results that have nothing to do with requests or people."""
    model, rng = load_head(), np.random.default_rng(seed)
    vectors = lambda: {
        "dlib": rng.standard_normal(128).astype(np.float32),
        "mobilefacenet": rng.standard_normal(192).astype(np.float32),
        "arcface": rng.standard_normal(512).astype(np.float32),
    }
    picture, more = np.zeros((8, 8, 3), np.uint8), np.random.default_rng(seed + 1)
    clip = lambda: {"clip": unit(more.standard_normal(16)), "inception": more.standard_normal(8)}
    subjects = [
        Subject(f"{i}.jpg", picture, None, None, vectors(), values=values(rng) | clip())
        for i in range(PEOPLE)
    ]
    own = [head(rng, model) for _ in subjects]
    outcomes = []
    for number in range(PEOPLE * EACH):
        person = number // EACH
        prompt = PROMPTS[(person + number % EACH // 2) % len(PROMPTS)]
        people = (person, (person + 1) % PEOPLE)
        request = Request(number, person, "own", prompt, number, people)
        edited = {"changed-outside": int(more.integers(9)), "seam": float(more.uniform(0.5, 2))}
        measured = ImageMeasurement(1, head(rng, model), vectors(), values(rng) | clip() | edited)
        outcomes.append(Outcome(request, person, head(rng, model), own[person], measured))
    texts = {prompt: unit(more.standard_normal(16)) for prompt in PROMPTS}
    return Run(model, subjects, outcomes, 0, rng.standard_normal((300, 192)), texts)


def summarized(run: Run) -> dict[str, dict]:
    results = statistics.compute_run(run)
    lines = summary.summarize(run, summary.scores_of(run), results, {})
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "RESAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def run():
    return unrelated()


@pytest.fixture(scope="module")
def of_unrelated(run):
    return summarized(run)


@pytest.fixture(scope="module")
def of_copies(run):
    return summarized(copier(run))


def test_every_measure_says_what_it_is(of_unrelated):
    assert set(of_unrelated) == {measure.name for measure in registry.MEASURES}
    for line in of_unrelated.values():
        assert line["title"] and line["definition"].endswith(".") and line["source"]
        assert line["direction"] in ("up", "down") and line["unit"] in ("", "share", "degrees")
        assert 0 < line["people"] <= PEOPLE and 0 < line["pictures"] <= PEOPLE * EACH


def test_a_model_that_copies_the_photo_gets_the_copy_level(of_copies):
    for name, line in of_copies.items():
        if np.isfinite(line["copy"]):
            assert line["value"] == pytest.approx(line["copy"], abs=1e-9), name


def test_results_that_are_unrelated_get_the_chance_level(of_unrelated):
    compared = 0
    for name, line in of_unrelated.items():
        if np.isfinite(line["chance"]):
            compared += 1
            width = line["high"] - line["low"]
            assert line["value"] == pytest.approx(line["chance"], abs=max(width, 0.02)), name
    assert compared > 20


def test_the_same_photo_is_the_same_person(of_copies):
    for name, line in of_copies.items():
        if name.startswith("identity-") or name == "sharpness":
            assert line["value"] == pytest.approx(1) and line["copy"] == pytest.approx(1), name


def test_shuffling_keeps_requests_and_results(run):
    mixed = shuffled(run, np.random.default_rng(0))
    assert [o.request for o in mixed.outcomes] == [o.request for o in run.outcomes]
    measured = lambda one: {id(o.measured) for o in one.outcomes}
    assert measured(mixed) == measured(run)


def test_a_measure_is_one_file(run, tmp_path, monkeypatch):
    code = '''
"""How often a picture's number is even."""
import numpy as np
from caphuman_jax.evaluation.metrics.base import Measure, Metric, averaged

def score(run):
    return np.array([float(r.number % 2 == 0) for r in run.requests])

def compute(run):
    return {"toy": averaged(run, score)}

MEASURE = Measure("toy", "even pictures", "toy", "up", "Share.", "arithmetic", "share", score)
METRIC = Metric(compute, measures=(MEASURE,), reads={"side": lambda shown: len(shown.image)})
'''
    (tmp_path / "toy_measure.py").write_text(code)
    paths = [*metrics.__path__, str(tmp_path)]
    monkeypatch.setattr(metrics, "__path__", paths)
    found = registry.discover(paths, metrics.__name__)
    assert all(metric in found for metric in registry.METRICS)
    (toy,) = (metric for metric in found if metric not in registry.METRICS)
    monkeypatch.setattr(statistics, "METRICS", [toy])
    monkeypatch.setattr(summary, "MEASURES", toy.measures)
    line = summarized(run)["toy"]
    assert line["value"] == 0.5 and line["pictures"] == PEOPLE * EACH


def test_the_run_folder_says_everything(run, tmp_path):
    missing = dataclasses.replace(
        run.outcomes[0].measured,
        faces=0,
        head=HeadParams.missing(run.model),
        vectors={n: v * np.nan for n, v in run.outcomes[0].measured.vectors.items()},
    )
    first = dataclasses.replace(run.outcomes[0], measured=missing, file="pictures/00000.png")
    part = dataclasses.replace(run, outcomes=[first, *run.outcomes[1:40]])
    results = {"face_found": {"value": 39 / 40, "interval": [0.9, float("nan")]}}
    summary.write(tmp_path, part, results, {}, {"model": {"name": "m"}})
    bad = lambda text: pytest.fail(f"{text} is not JSON")
    load = lambda text: json.loads(text, parse_constant=bad)
    lines = [load(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and len({line["id"] for line in lines}) == 40
    assert lines[0]["scores"]["identity-dlib"] is None and lines[0]["measured"] is None
    assert lines[0]["scores"]["face-found"] == 0 and lines[0]["file"] == "pictures/00000.png"
    assert all((tmp_path / file).is_file() for line in lines for file in line["references"])
    document = load((tmp_path / "summary.json").read_text())
    assert document["model"] == {"name": "m"} and document["pictures"] == 40
    by_name = {line["name"]: line for line in document["measures"]}
    scores = [line["scores"]["face-found"] for line in lines]
    assert by_name["face-found"]["value"] == pytest.approx(np.mean(scores))
    assert not atomic.leftovers(tmp_path)


def outcome(run, number=0, **changes):
    """The run with one outcome, whose measured values are changed."""
    one = run.outcomes[number]
    values = {**one.measured.values, **changes}
    measured = dataclasses.replace(one.measured, values=values)
    return dataclasses.replace(run, outcomes=[dataclasses.replace(one, measured=measured)])


@pytest.mark.parametrize("pose", [(0, 0, 0), (35, 0, 0), (-20, 12, 8), (10, -25, -30)])
def test_the_landmarks_of_a_head_of_known_pose_have_that_pose(run, pose):
    """Rendered heads: the mean face turned, with another person's shape and a smile."""
    model, rng = run.model, np.random.default_rng(3)
    weights = {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9, "jawOpen": 0.5}
    expression = np.array([weights.get(n, 0.0) for n in model.expression_names], np.float32)
    identity = rng.uniform(0, 0.15, len(model.identity_basis)).astype(np.float32)
    for shape in (np.zeros_like(identity), identity):
        points = model.vertices(shape, expression)
        points = camera.project(points, rotation_matrix(*pose), 90.0, np.full(2, 128.0, np.float32))
        shown = Shown(np.zeros((256, 256, 3), np.uint8), np.asarray(model.landmarks(points)))
        found = turn_by_geometry.geometry(shown)
        np.testing.assert_allclose(found, pose, atol=2 if shape is identity else 1)


def test_turns_are_from_the_reference_photo(run):
    one = run.outcomes[0]
    turn = one.asked.angles - one.own.angles
    before = run.subjects[one.person].values["geometry"]
    part = outcome(run, geometry=before + turn + [1.5, -2, 0.5])
    errors = [turn_by_geometry.score(part, axis)[0] for axis in range(3)]
    np.testing.assert_allclose(errors, [1.5, 2, 0.5])


def test_gaze_has_directions(run):
    names = run.model.expression_names
    table = np.zeros((3, len(names)))
    table[0, [names.index("eyeLookInLeft"), names.index("eyeLookOutRight")]] = 1
    table[1, [names.index("eyeLookDownLeft"), names.index("eyeLookDownRight")]] = 0.5
    wanted = [[1, 0], [0, -0.5], [0, 0]]
    np.testing.assert_allclose(gaze.directions(run.model, table), wanted, atol=1e-6)


def test_sharpness_and_diversity_of_known_pictures(run):
    rng = np.random.default_rng(0)
    landmarks = np.concatenate([rng.uniform(40, 210, (478, 2)), np.zeros((478, 1))], axis=1)
    image = rng.integers(0, 255, (256, 256, 3), np.uint8)
    blurred = cv2.GaussianBlur(image, (0, 0), 4)
    sharp, soft = (sharpness.sharpness(Shown(x, landmarks)) for x in (image, blurred))
    assert sharp > 5 * soft > 0 and np.isnan(sharpness.sharpness(Shown(image, None)))
    thumbnails = [np.full((4, 4, 3), v, np.uint8) for v in (0, 0, 51, 51)]
    same = [dataclasses.replace(o.request, prompt="p", person=0) for o in run.outcomes[:4]]
    parts = [outcome(run, i, thumbnail=t).outcomes[0] for i, t in enumerate(thumbnails)]
    parts = [dataclasses.replace(o, request=r) for o, r in zip(parts, same)]
    found = diversity.score(dataclasses.replace(run, outcomes=parts))
    np.testing.assert_allclose(found, 2 / 3 * 0.2)
    assert np.isnan(diversity.score(dataclasses.replace(run, outcomes=parts[:1]))).all()


def test_a_copy_of_a_training_photo_is_memorized(run):
    made = run.outcomes[0].measured.vectors["mobilefacenet"]
    part = dataclasses.replace(run, outcomes=run.outcomes[:2], training=made[None] * 2)
    assert list(memorization.score(part)) == [1, 0]
    own = dataclasses.replace(copier(run), training=run.training)
    assert not memorization.score(own).any()
    brute = [max(np.corrcoef(a, b)[0, 1] for b in np.eye(4)) for a in np.eye(4)]
    found = memorization.nearest(np.eye(4), np.eye(4)[::-1])
    np.testing.assert_allclose(found, brute, atol=1e-6)


@pytest.mark.parametrize(
    "prompt, detail, wanted",
    [
        ("a person in dark red clothes, blue background", "clothes", "red"),
        ("a person in a red coat", "clothes", None),
        ("a person with long grey hair", "hair", "grey"),
        ("a person with long hair", "hair", None),
        ("a person with long hair", "long-hair", ""),
        ("a person with long dark hair", "long-hair", ""),
        ("a person wearing glasses", "glasses", ""),
        ("a person wearing sunglasses", "glasses", None),
    ],
)
def test_what_prompts_say_of_details(prompt, detail, wanted):
    assert prompt_details.asked(prompt, detail) == wanted
