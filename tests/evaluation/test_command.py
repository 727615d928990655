"""The measuring on photos changed in a known way, and the whole command on a tiny model of random
weights.
"""

import argparse
import dataclasses
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli import evaluate
from caphuman_jax.config import MINI
from caphuman_jax.errors import CapHumanError
from caphuman_jax.evaluation import (
    benchmark,
    bulk,
    estimators,
    head_pictures,
    prompt_suite,
    statistics,
)
from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.outcome import HeadParams, Subject, light_from
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.head import editing
from caphuman_jax.models import registry
from caphuman_jax.pipeline import loading
from caphuman_jax.weights.model_folder import save_model

ASTRONAUT = Path(str(files("caphuman_jax") / "assets" / "astronaut_nasa.png"))
TINY = dataclasses.replace(
    MINI,
    name="tiny",
    image_size=64,
    unet=dataclasses.replace(
        MINI.unet,
        channels=8,
        channel_multipliers=(1, 2),
        attention_resolutions=(2,),
        heads=2,
        cross_attention_dim=16,
        groups=4,
    ),
    capface=dataclasses.replace(MINI.capface, hint_widths=(8, 8, 8)),
    vae=dataclasses.replace(
        MINI.vae, encoder_channels=8, decoder_channels=8, channel_multipliers=(1, 2), groups=4
    ),
    text=dataclasses.replace(MINI.text, width=16, layers=1, heads=2, mlp_width=32, embed_width=8),
    sampling=dataclasses.replace(MINI.sampling, steps=2, guidance_scale=2.0),
)


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "RESAMPLES", 10)
        patch.setattr(estimators, "SHUFFLES", 5)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    rng = np.random.default_rng(0)
    random = lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32)  # nothing to compile
    save_model(
        path,
        TINY,
        {
            name: jax.tree.map(random, params)
            for name, (_, params) in registry.abstract(TINY).items()
        },
    )
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The astronaut, her mirrored picture in other colors, one photo without a face, one with two,
    and a file that is none.
    """
    path = tmp_path_factory.mktemp("photos")
    photo = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    photo = np.asarray(Image.fromarray(photo).resize((512 * photo.shape[1] // photo.shape[0], 512)))
    images = {
        "a.png": photo,
        "b.png": photo[:, ::-1, ::-1],
        "empty.png": np.full((80, 80, 3), 128, np.uint8),
        "two.png": np.concatenate([photo, photo], 1),
    }
    for name, image in images.items():
        Image.fromarray(np.ascontiguousarray(image)).save(path / name)
    (path / "broken.jpg").write_bytes(b"no picture")
    (path / "notes.txt").write_text("not looked at")
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return loading.load(folder, batch=2)


@pytest.fixture(scope="module")
def subject(pipe, photos):
    """The astronaut framed at 256 pixels, whatever the tiny model's size."""
    from caphuman_jax.evaluation.measure import recognition_vectors
    from caphuman_jax.person.person import analyze_photo

    person = analyze_photo(pipe.head_model, photos / "a.png", 256)
    return Subject(
        "a.png",
        person.square,
        jax.device_get(person.head),
        person,
        recognition_vectors(person.square, person.landmarks),
    )


def test_a_photo_turned_by_a_known_angle_is_measured_so(pipe, subject):
    outcomes = benchmark.run_measurement_floor(pipe.head_model, [subject], seed=0, batch=2)
    assert len(outcomes) == 2
    rolls = [o.asked.angles[2] for o in outcomes]
    assert max(abs(np.array(rolls) - float(subject.head.angles[2]))) > 3  # they were turned
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.measured.head.angles, outcome.asked.angles, atol=2.5)
        np.testing.assert_allclose(
            outcome.measured.head.position, outcome.asked.position, atol=0.02
        )
        assert np.linalg.norm(outcome.measured.vectors["dlib"] - subject.vectors["dlib"]) < 0.35
    found = statistics.compute(pipe.head_model, [subject], outcomes)
    assert found["face_found"]["value"] == 1 and "prompts" not in found


def test_measuring_says_where_there_is_no_face(pipe, subject):
    blank, shown = measure_images(
        pipe.head_model, [np.full((256, 256, 3), 90, np.uint8), subject.picture]
    )
    assert (
        blank.faces == 0
        and np.isnan(blank.head.angles).all()
        and np.isnan(blank.vectors["dlib"]).all()
    )
    assert blank.values["chroma"] == pytest.approx(0, abs=0.5)
    assert shown.faces == 1 and shown.values["chroma"] > 3
    np.testing.assert_allclose(shown.head.angles, subject.head.angles, atol=1.5)
    assert shown.values["background"] in ("light grey", "white")
    np.testing.assert_allclose(shown.vectors["dlib"], subject.vectors["dlib"], atol=0.1)


def test_light_has_a_side():
    left, right, top = (light_from(editing.parse_light(name)) for name in ("left", "right", "top"))
    assert left[0] < -0.3 and right[0] == pytest.approx(-left[0]) and top[1] > 0.3 > abs(top[0])
    assert light_from(editing.parse_light("right=0"))[0] == pytest.approx(0)


def test_bulk_pictures_are_the_pipelines(pipe, photos):
    read = bulk.subject_reader(pipe)
    people = [read(Photo(name, photos / name)) for name in ("a.png", "b.png")]
    heads = [
        prompt_suite.requested_head(
            pipe.head_model, p.head, prompt_suite.Request(0, 0, "yaw=10,smile=0.8", "", 0)
        )
        for p in people
    ]
    made = bulk.bulk_generator(pipe, 2, 2.0)(
        [p.person for p in people], heads, ["a photo of a person", "a drawing"], [7, 8]
    )
    alone = pipe(
        reference=people[1].person,
        prompt="a drawing",
        head={"yaw": 10, "expression": "smile=0.8"},
        seed=8,
        steps=2,
        guidance_scale=2.0,
        num_images=2,
    )
    assert made.shape == (2, 64, 64, 3) and made.dtype == np.uint8
    np.testing.assert_allclose(made[1].astype(int), alone.images[0].astype(int), atol=1)
    assert np.abs(made[0].astype(int) - made[1]).max() > 3


def test_asked_heads_are_made_again_from_their_numbers(pipe, subject):
    model, numbers = pipe.head_model, {"yaw": 20, "pitch": -10, "expression": "smile=0.8"}
    position = (0.4, 0.55, 0.5)
    head = editing.from_numbers(model, subject.head, **numbers, light="left", position=position)
    for known in (head, subject.head):
        asked = HeadParams.of(model, known)
        again = HeadParams.of(model, head_pictures.asked_head(model, subject.head, asked))
        for field in dataclasses.fields(HeadParams):
            given, made = (getattr(params, field.name) for params in (asked, again))
            np.testing.assert_allclose(made, given, atol=2e-3)


def arguments(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_command_writes_the_report(folder, photos, tmp_path, capsys):
    out = tmp_path / "report"
    words = (
        "--photos",
        photos,
        "--model",
        folder,
        "--report",
        out,
        "--per-person",
        3,
        "--heads",
        "own",
        "random",
        "smile=0.8,yaw=45",
        "--seed",
        5,
        "--batch",
        2,
    )
    assert evaluate.run(arguments(*words)) == 0
    document = json.loads((out / "report.json").read_text())
    assert document["results"]["pictures"] == 6 and document["results"]["people"] == 2
    assert set(document["skipped"]) == {"empty.png", "two.png", "broken.jpg"}
    assert "2 faces" in document["skipped"]["two.png"]
    assert document["settings"]["steps"] == 2 and len(document["model"]["sha256"]) == 64
    own = {name: document["settings"][name] for name in ("sampler", "head_guidance")}
    assert own == {"sampler": "ddim", "head_guidance": 3.0}
    assert (
        document["results"]["identity"]["dlib"]["pairs_left_out_as_same_person"] == 1
    )  # she and her mirrored picture
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["head"] for line in lines if line["person"] == "a.png"][0] == "own"
    assert len(lines) == 6
    summary = json.loads((out / "summary.json").read_text())
    names = [measure["name"] for measure in summary["measures"]]
    assert len(set(names)) == len(names) and set(names) <= set(lines[0]["scores"])
    assert all((out / file).is_file() for line in lines for file in line["references"])
    assert all(len(list(out.glob(line["file"]))) == 1 for line in lines)
    said = capsys.readouterr()
    assert "report.html" in said.out and (out / "sheet_00.png").is_file()
    told = [line for line in said.err.splitlines() if "yaw 45°: beyond" in line]
    assert len(told) == 1 and told[0].startswith("caphuman: notice: "), "two were asked for"
    times = {path: path.stat().st_mtime_ns for path in out.glob("pictures/*.png")}
    assert "a.png" in (out / "report.html").read_text()
    assert evaluate.run(arguments(*words, "--no-pictures")) == 0  # resumes what is done already
    assert not re.search(r"a\.png|data:image", (out / "report.html").read_text())
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("pictures/*.png")}
    with pytest.raises(CapHumanError, match="other requests.*--report"):
        evaluate.run(arguments(*words, "--steps", 1))
    (out / "pictures" / ".sample" / "run.json").unlink()
    with pytest.raises(CapHumanError, match="exists already"):
        evaluate.run(arguments(*words))

    again = tmp_path / "again"  # of a run with other people that was killed as it began
    (again / "people").mkdir(parents=True)
    shutil.copy(out / "people" / "00001.identity", again / "people" / "00000.identity")
    (again / "pictures" / ".sample" / "units").mkdir(parents=True)
    evaluate.run(arguments(*words[:5], again, *words[6:]))
    assert (again / "scores.jsonl").read_text() == (out / "scores.jsonl").read_text()
    for line in lines:
        assert (again / line["file"]).read_bytes() == (out / line["file"]).read_bytes()
    for wrong, message in (
        (("--training-records", tmp_path), "no records there"),
        (("--training-people",), "goes with --training-records"),
        (("--ablate", "nose"), "cannot be left out"),
        (("--ablate", "control-scale=7:8:-1"), "control_scale"),
    ):
        with pytest.raises(CapHumanError, match=message):
            evaluate.run(arguments(*words[:5], again, *words[6:], "--overwrite", *wrong))
    assert (again / "report.json").is_file(), "what is refused removes nothing"


@pytest.mark.parametrize(
    "words, message",
    [
        (("--photos", "nowhere"), "not a directory"),
        (("--limit", 1), "only 1 of 1"),
        (("--heads", "grin=1"), "grin"),
        (("--seed", -1), "seed"),
        (("--suite", "haeds"), "did you mean heads"),
        (("--ablate", "nose"), "cannot be left out"),
        (("--per-person", 10_000_001), "an evaluation makes at most 10,000,000"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_any_work(folder, photos, tmp_path, words, message):
    given = dict(zip(("--photos", "--model", "--report"), (photos, folder, tmp_path / "r"))) | dict(
        [words]
    )
    with pytest.raises(CapHumanError, match=message):
        evaluate.run(arguments(*(word for pair in given.items() for word in pair)))
    assert not (tmp_path / "r").exists()
