"""Statistics of outcomes whose truth is known, and the report made of them."""

import dataclasses
import json

import numpy as np
import pytest

from caphuman_jax.evaluation import estimators, prompt_suite, report, statistics
from caphuman_jax.evaluation.metrics.base import different_people
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.suites import suite_file
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io.images import write_png

PEOPLE, EACH = 60, 6


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def model():
    return load_head()


def vectors(rng):
    return {
        "dlib": rng.standard_normal(128).astype(np.float32),
        "mobilefacenet": rng.standard_normal(192).astype(np.float32),
    }


@pytest.fixture(scope="module")
def subjects():
    rng = np.random.default_rng(0)
    return [
        Subject(f"{i}.jpg", rng.integers(0, 255, (32, 32, 3), np.uint8), None, None, vectors(rng))
        for i in range(PEOPLE)
    ]


def make_outcomes(model, subjects, follows: bool, missing: int = 0):
    """Results that follow the requests up to a known error, or that are unrelated to them."""
    rng, suite = np.random.default_rng(1), suite_file.load("requests")
    outcomes = []
    for request in dataclasses.replace(suite, per_person=EACH).requests(PEOPLE, 0):
        draw = lambda: HeadParams(
            rng.uniform(-19, 19, 3),
            rng.uniform(0.4, 0.6, 3),
            rng.uniform(0, 1, len(model.expression_names)),
            rng.uniform(-1, 1, 2),
        )
        asked, other, own = draw(), draw(), draw()
        step = lambda: HeadParams(
            asked.angles + [3, -3, 1],
            asked.position + [0.03, 0.04, 0],
            asked.expression,
            -asked.light,
        )
        shown = (
            {n: v + 0.01 for n, v in subjects[request.person].vectors.items()}
            if follows
            else vectors(rng)
        )
        chroma = 1.0 if prompt_suite.asks_without_color(request.prompt) == follows else 30.0
        seen = ImageMeasurement(
            1,
            step() if follows else other,
            shown,
            {
                "chroma": chroma,
                "background": prompt_suite.asked_background(request.prompt) if follows else "pink",
            },
        )
        if request.number < missing:
            seen = ImageMeasurement(
                0,
                HeadParams.missing(model),
                {n: np.full(len(v), np.nan) for n, v in shown.items()},
                {"chroma": chroma, "background": None},
            )
        outcomes.append(
            Outcome(request, request.person, asked, own, seen, f"pictures/{request.number:05d}.png")
        )
    return outcomes


def test_results_that_follow(model, subjects):
    found = statistics.compute(model, subjects, make_outcomes(model, subjects, True))
    assert found["face_found"]["value"] == 1
    assert (
        found["identity"]["dlib"]["auc"]["value"] == 1
        and found["identity"]["dlib"]["auc_centered_cosine"]["value"] == 1
    )
    assert (
        found["identity"]["dlib"]["rank1_among_all"]["value"] == 1
        and found["identity"]["dlib"]["rank1_among_50"]["value"] == 1
    )
    assert (
        found["identity"]["mobilefacenet"]["conditioned_on"]
        and not found["identity"]["dlib"]["conditioned_on"]
    )
    for angle, error in (("yaw", 3), ("pitch", 3), ("roll", 1)):
        assert found["pose"][angle]["all"]["median"]["value"] == pytest.approx(error)
        assert found["pose"][angle]["all"]["median"]["interval"] == pytest.approx([error] * 2)
        assert found["pose"][angle]["changed"]["mean"]["chance"] == pytest.approx(38 / 3, rel=0.1)
    assert found["pose"]["pitch"]["all"]["bias"]["value"] == pytest.approx(-3)
    assert found["expression"]["smile"]["changed"]["correlation"]["value"] == pytest.approx(1)
    assert found["light"]["right"]["all"]["correlation"]["value"] == pytest.approx(-1)
    assert found["position"]["all"]["median_distance"]["value"] == pytest.approx(0.05)
    assert found["position"]["all"]["median_log_size_error"]["value"] == pytest.approx(0)
    assert (
        found["prompts"]["black_and_white"]["value"] == 1
        and found["prompts"]["background"]["value"] == 1
    )
    assert found["prompts"]["black_and_white"]["chance"] == pytest.approx(
        0.62, abs=0.05
    )  # a quarter each: 1/16 + 9/16
    assert found["prompts"]["background"]["chance"] == pytest.approx(0.5, abs=0.05)
    assert all(goal["reached"] for goal in statistics.goals(found).values())


def test_few_pictures_reach_no_goal_and_have_no_chance(model, subjects):
    outcomes = [o for o in make_outcomes(model, subjects, True) if o.person < 3]
    found = statistics.compute(model, subjects[:3], outcomes)
    yaw = found["pose"]["yaw"]["changed"]
    assert yaw["requests"] < 20 and np.isnan(yaw["median"]["chance"])
    assert yaw["median"]["value"] == pytest.approx(3)
    for goal in statistics.goals(found).values():
        assert goal["reached"] is None
        assert report.verdict(goal, "reached", "not reached").startswith("too few: ")


def test_a_head_model_without_smile_and_jaw_leaves_them_out(model, subjects, tmp_path):
    names = tuple(f"direction {i}" for i in range(len(model.expression_names)))
    other = dataclasses.replace(model, expression_names=names)
    outcomes = make_outcomes(other, subjects, follows=True)[:12]
    results = statistics.compute(other, subjects, outcomes)
    for name in ("smile", "jawOpen"):
        assert np.isnan(results["expression"][name]["all"]["median"]["value"])
        assert statistics.goals(results)[f"{name} correlation"]["reached"] is None
    assert results["expression"]["together"]["all"]["mean"]["value"] == 0
    assert np.isnan(results["by_head"]["own"]["smile_measured"])


def test_results_that_do_not(model, subjects):
    found = statistics.compute(model, subjects, make_outcomes(model, subjects, False))
    assert found["identity"]["dlib"]["auc"]["value"] == pytest.approx(0.5, abs=0.05)
    assert found["identity"]["dlib"]["rank1_among_50"]["value"] == pytest.approx(1 / 50, abs=0.02)
    for statistic in (
        found["pose"]["yaw"]["changed"]["median"],
        found["expression"]["jawOpen"]["changed"]["mean"],
        found["prompts"]["background"],
    ):
        assert statistic["value"] == pytest.approx(statistic["chance"], rel=0.15, abs=0.02)
    assert (
        found["prompts"]["black_and_white"]["value"] == 0
        and found["prompts"]["background"]["value"] == 0
    )
    reached = statistics.goals(found)
    assert reached["face found"]["reached"] and not any(
        g["reached"] for name, g in reached.items() if name != "face found"
    )


def test_a_copy_of_the_photo_is_no_following(model, subjects):
    outcomes = []
    for i, outcome in enumerate(make_outcomes(model, subjects, True)):
        asked = outcome.asked if i % 4 == 0 else outcome.own  # three in four ask for nothing new
        outcomes.append(
            dataclasses.replace(
                outcome,
                asked=asked,
                measured=dataclasses.replace(outcome.measured, head=outcome.own),
            )
        )
    found = statistics.compute(model, subjects, outcomes)
    yaw = found["pose"]["yaw"]
    assert yaw["all"]["median"]["value"] == 0 and yaw["all"]["requests"] == len(outcomes)
    assert yaw["changed"]["median"]["value"] == yaw["changed"]["median"]["copied"] > 8
    assert len(outcomes) / 5 < yaw["changed"]["requests"] <= len(outcomes) / 4
    assert (
        abs(found["expression"]["smile"]["changed"]["correlation"]["value"])
        < 0.35
        < found["expression"]["smile"]["all"]["correlation"]["value"]
    )
    reached = statistics.goals(found)
    assert (
        not reached["median yaw error, degrees"]["reached"]
        and not reached["smile correlation"]["reached"]
    )


def test_missing_faces_count_as_failures(model, subjects):
    missing = PEOPLE * EACH // 4
    found = statistics.compute(
        model, subjects, make_outcomes(model, subjects, True, missing=missing)
    )
    assert found["face_found"]["value"] == pytest.approx(0.75)
    assert found["identity"]["dlib"]["auc"]["value"] == pytest.approx(0.75)
    assert found["identity"]["dlib"]["rank1_among_all"]["value"] == pytest.approx(0.75)
    assert found["pose"]["yaw"]["changed"]["median"]["value"] == pytest.approx(
        3
    )  # of those that were found


def test_photos_of_one_person_are_not_compared(subjects):
    twins = [*subjects[:3], dataclasses.replace(subjects[0], name="again.jpg")]
    different = different_people(twins)
    assert not different[0, 3] and not different[3, 0] and different.sum() == 14


def test_heads_turned_far_are_left_out_of_pose(model, subjects):
    outcomes = make_outcomes(model, subjects, True)
    far = dataclasses.replace(
        outcomes[0], asked=dataclasses.replace(outcomes[0].asked, angles=np.array([0.0, 0.0, 21.0]))
    )
    assert (
        statistics.compute(model, subjects, [far, *outcomes[1:]])["pose"]["requests"]
        == len(outcomes) - 1
    )


@pytest.mark.parametrize("missing", [0, PEOPLE * EACH])
def test_report_is_written(model, subjects, tmp_path, missing):
    outcomes = make_outcomes(model, subjects, True, missing=missing)
    (tmp_path / "pictures").mkdir()
    for outcome in outcomes[: 9 * EACH]:
        write_png(tmp_path / outcome.file, np.full((32, 32, 3), 80, np.uint8))
    some, mine = subjects[:9], outcomes[: 9 * EACH]
    results = statistics.compute(model, subjects, outcomes)
    document = {
        "results": results,
        "measurement_floor": results,
        "goals": statistics.goals(results),
        "settings": {"model": "m", "steps": 2, "guidance_scale": 3.0, "seed": 0},
        "model": {"sha256": "ab" * 32},
        "skipped": {"x.jpg": "no face found"},
        "seconds": {"look_at_a_picture": 0.1, "generate": float("nan")},
        "sheets": report.write_sheets(tmp_path, some, mine, tmp_path),
    }
    report.write_json(tmp_path / "report.json", document)
    report.write_index(tmp_path / "index.md", document)
    loaded = json.loads(
        (tmp_path / "report.json").read_text(),
        parse_constant=lambda text: pytest.fail(f"{text} is not JSON"),
    )
    assert loaded["seconds"]["generate"] is None
    assert loaded["results"]["face_found"]["value"] == (0 if missing else 1)
    text = (tmp_path / "index.md").read_text()
    assert (
        "| median yaw error, degrees |" in text
        and "x.jpg: no face found" in text
        and "nan" not in text
    )
    assert document["sheets"] == ["sheet_00.png", "sheet_01.png"]
    rows = [line for line in text.splitlines() if line.startswith("| face found")]
    assert "not measured" in text or not missing
    assert rows[0].endswith("| no |" if missing else "| yes |")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "index.md",
        "pictures",
        "report.json",
        "sheet_00.png",
        "sheet_01.png",
    ]


def test_sheet_has_a_cell_for_every_picture():
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    page = report.sheet(
        [
            [
                (red, "own", "a photo"),
                (red, "yaw=-20", "a prompt far too long to be written under a picture so small"),
            ],
            [(red, "own", "")],
        ]
    )
    assert page.shape == (2 * (report.CELL + report.LABEL), 2 * report.CELL, 3)
    middle, down = report.CELL // 2, report.CELL + report.LABEL
    for y, x in ((middle, middle), (middle, middle + report.CELL), (middle + down, middle)):
        assert tuple(page[y, x]) == (255, 0, 0)
    assert tuple(page[middle + down, middle + report.CELL]) == (255, 255, 255)
