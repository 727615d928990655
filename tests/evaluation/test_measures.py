"""Measures on cases with a known answer: copies of the reference photo, results that are shuffled,
and a measure that a test adds.
"""

import dataclasses
import json

import numpy as np
import pytest

from caphuman_jax.evaluation import estimators, metrics, statistics, summary
from caphuman_jax.evaluation.metrics import registry
from caphuman_jax.evaluation.metrics.base import Run, copier, shuffled
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io import atomic

PEOPLE, EACH = 60, 4
PROMPTS = ("a photo of a person, blue background", "a black-and-white photo of a person")


def values(rng):
    return {
        "chroma": float(rng.uniform(0, 20)),
        "background": str(rng.choice(["blue", "red", "dark blue", "green"])),
    }


def head(rng, model):
    return HeadParams(
        rng.uniform(-19, 19, 3),
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
    }
    picture = np.zeros((8, 8, 3), np.uint8)
    subjects = [
        Subject(f"{i}.jpg", picture, None, None, vectors(), values=values(rng))
        for i in range(PEOPLE)
    ]
    own = [head(rng, model) for _ in subjects]
    outcomes = []
    for number in range(PEOPLE * EACH):
        person = number // EACH
        request = Request(number, person, "random", PROMPTS[number % len(PROMPTS)], number)
        measured = ImageMeasurement(1, head(rng, model), vectors(), values(rng))
        outcomes.append(Outcome(request, person, head(rng, model), own[person], measured))
    return Run(model, subjects, outcomes)


def summarized(run: Run) -> dict[str, dict]:
    results = statistics.compute(run.model, run.subjects, run.outcomes, run.seed)
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
            assert line["value"] == pytest.approx(line["copy"]), name


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
        if name.startswith("identity-"):
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
METRIC = Metric(compute, measures=(MEASURE,), reads={"side": lambda image, _: len(image)})
'''
    (tmp_path / "toy_measure.py").write_text(code)
    paths = [*metrics.__path__, str(tmp_path)]
    monkeypatch.setattr(metrics, "__path__", paths)
    found = registry.discover(paths, metrics.__name__)
    assert [m for m in found if m not in registry.METRICS] == [
        metric for metric in found if any(m.name == "toy" for m in metric.measures)
    ]
    monkeypatch.setattr(statistics, "METRICS", found)
    monkeypatch.setattr(summary, "MEASURES", [m for metric in found for m in metric.measures])
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
    results = statistics.compute(part.model, part.subjects, part.outcomes)
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
