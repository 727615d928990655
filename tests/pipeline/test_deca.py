"""A model folder with DECA in it, and FLAME where $CAPHUMAN_FLAME says: the pipeline against DECA's
functions one by one.
"""

import dataclasses

import flame_standin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli.app import main
from caphuman_jax.errors import HeadError, PhotoError
from caphuman_jax.evaluation import prompt_suite, statistics
from caphuman_jax.evaluation.benchmark import run_measurement_floor
from caphuman_jax.evaluation.measure import measure_images, recognition_vectors
from caphuman_jax.evaluation.outcome import HeadParams, Outcome, Subject
from caphuman_jax.head import editing, hints
from caphuman_jax.head.models import deca, deca_head, flame_files
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io.images import write_png
from caphuman_jax.models import deca_encoder
from caphuman_jax.person import identity_file
from caphuman_jax.pipeline import loading
from caphuman_jax.pipeline.head_target import HeadTarget
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.weights import model_folder

PROMPT = "a photo of a person"


@pytest.fixture(scope="module")
def flame_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flame")
    flame_standin.write_folder(path)
    patch = pytest.MonkeyPatch()
    patch.setenv(deca_head.VARIABLE, str(path))
    load_head.cache_clear()
    yield path
    patch.undo()
    load_head.cache_clear()


@pytest.fixture(scope="module")
def network(flame_folder, astronaut):
    """See `flame_standin.deca_encoder`."""
    return flame_standin.deca_encoder(astronaut)


@pytest.fixture(scope="module")
def by_deca(pipe, network, tiny_params, tmp_path_factory):
    """A model folder and its pipeline."""
    config = dataclasses.replace(pipe.config, name="tinyflame", head="flame")
    path = tmp_path_factory.mktemp("models") / "tinyflame"
    model_folder.save_model(
        path,
        config,
        {**{name: pipe.params[name] for name in tiny_params}, "deca_encoder": network[1]},
    )
    return path, loading.load(path)


@pytest.fixture(scope="module")
def tilted(astronaut):
    """Another photo: turned, darker and of another size."""
    turned = Image.fromarray(astronaut[:400]).rotate(
        -12, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)
    )
    return (np.asarray(turned) * 0.7).astype(np.uint8)


@pytest.fixture(scope="module")
def measured(by_deca, astronaut, tilted):
    return [by_deca[1].person(photo) for photo in (astronaut, tilted)]


def code_in_square(network, photo, person, framing="head"):
    """DECA's numbers of a photo, step by step; the crop as it lies in the square (or, framing
    "photo", in the photo).
    """
    code = deca.estimate(network, photo, person.face.landmarks)
    if framing == "photo":
        return code
    scale, shift = person.place[0, 0], person.place[:, 2]
    crop = np.concatenate(
        [np.asarray(code.crop[:2]) * scale + shift, [float(code.crop[2]) * scale]]
    )
    return dataclasses.replace(
        code, crop=jnp.asarray(crop, jnp.float32), size=jnp.full(2, len(person.square), jnp.float32)
    )


def drawn(pipe, network, flame_folder, code, height, width):
    codes = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], code)
    return np.asarray(
        deca.render_hints(
            pipe.head_model.flame, flame_files.load_texture(flame_folder), codes, height, width
        )[0]
    )


def same(ours, theirs):
    """All but the pixels whose center lies on an edge within rounding."""
    assert (theirs[..., 3:6] != 0).any(axis=-1).mean() > 0.15
    return (
        np.abs(np.asarray(ours) - theirs).max(axis=-1) > 2e-3 * np.abs(theirs).max()
    ).mean() < 5e-3


@pytest.mark.parametrize("shift, least, most", [(0, 0.03, 0.06), (0.03, 0.3, 0.45)])
def test_a_plain_frontal_head(flame_folder, astronaut, measured, monkeypatch, shift, least, most):
    """The mean head, straight ahead in the middle of DECA's crop, is off by 5 % of the eye
    distance; the camera's shift is in meters.
    """
    model, landmarks = load_head("flame"), measured[0].face.landmarks
    camera = flame_standin.frontal_camera(model.flame) + np.asarray([0, shift, 0], np.float32)
    assert 8 < camera[0] < 11.5
    numbers = {name: np.zeros(count) for name, count in deca_encoder.PARTS.items()}
    crop = deca.crop_of_box(deca.landmark_box(landmarks))
    code = deca.code_from_numbers(numbers | {"camera": camera}, crop, astronaut.shape[:2])
    monkeypatch.setattr(deca, "estimate", lambda *_: code)
    space = flame_files.load_texture(flame_folder)
    head = deca_head.head_by_deca(model, space, None, astronaut, landmarks)
    assert least < float(head.residual) < most


def test_hints_of_a_photo(by_deca, network, flame_folder, astronaut, measured):
    """Photo → crop → numbers → hints as the original draws them, raw, at another size than the
    model's.
    """
    pipe, person = by_deca[1], measured[0]
    code = code_in_square(network, astronaut, person)
    theirs = drawn(pipe, network, flame_folder, code, 64, 96)
    assert same(pipe.hints(person.head, (64, 96)), theirs) and not same(
        pipe.hints(measured[1].head, (64, 96)), theirs
    )
    assert person.head.albedo.shape == (256, 256, 3)
    bright = dataclasses.replace(code, light=code.light * 2)
    theirs = drawn(pipe, network, flame_folder, bright, 64, 96)
    assert theirs[..., 6:].max() > 1.2 and same(
        pipe.hints(dataclasses.replace(person.head, light=person.head.light * 2), (64, 96)), theirs
    )
    # How sure it is: DECA's landmarks against the detector's.
    alone = deca_head.head_by_deca(
        pipe.head_model,
        flame_files.load_texture(flame_folder),
        network,
        astronaut,
        person.face.landmarks,
    )
    assert (
        person.confidence == pytest.approx(float(alone.confidence), abs=1e-5)
        and 0 < float(alone.residual) < 0.5
    )


@pytest.mark.parametrize(
    "take", ["position", "pose", "expression", "lighting", "position,pose", "all"]
)
@pytest.mark.parametrize("framing", ["head", "photo"])
def test_mixing_is_decas(
    by_deca, network, flame_folder, astronaut, tilted, measured, take, framing
):
    pipe, (person, lender) = by_deca[1], measured
    head = HeadTarget(photo=lender, take=take, framing=framing).apply(
        pipe.head_model, person.head, lender
    )
    code = deca.mix(
        code_in_square(network, astronaut, person),
        code_in_square(network, tilted, lender, framing),
        take,
    )
    theirs = drawn(pipe, network, flame_folder, code, 64, 96)
    ours = np.asarray(pipe.hints(head, (64, 96)))
    assert (
        np.abs(ours - theirs).max(axis=-1) > 2e-3 * np.abs(theirs).max()
    ).mean() < 5e-3 and theirs.any()
    assert (
        np.abs(ours - np.asarray(pipe.hints(person.head, (64, 96)))) > 0.01
    ).mean() > 0.01  # something was taken
    np.testing.assert_array_equal(head.albedo, person.head.albedo)
    np.testing.assert_array_equal(head.identity, person.head.identity)


def test_numbers_on_top(by_deca, measured):
    """Degrees, expression and light in numbers over another photo's head: what they name changes,
    the rest is the photo's.
    """
    pipe, (person, lender) = by_deca[1], measured
    asked = HeadTarget(photo=lender, yaw=25, expression="jawOpen=0.6", light="left")
    head, plain = (
        asked.apply(pipe.head_model, person.head, lender),
        HeadTarget(photo=lender).apply(pipe.head_model, person.head, lender),
    )
    np.testing.assert_allclose(head.angles, [25, *np.asarray(plain.angles[1:])], atol=1e-3)
    np.testing.assert_array_equal(head.translation, plain.translation)
    np.testing.assert_array_equal(
        head.expression, editing.expression_vector(pipe.head_model, "jawOpen=0.6")
    )
    result = pipe(reference=person, prompt=PROMPT, head=asked)
    np.testing.assert_array_equal(
        result.hints, np.asarray(hints.render_hints(pipe.head_model, head, 64, 64))
    )
    np.testing.assert_array_equal(result.head.light, editing.parse_light("left"))
    assert result.settings["head_by"] == "DECA" and result.settings["people"][0]["head"][
        "yaw"
    ] == pytest.approx(25, abs=1e-2)
    assert "deca_encoder" in result.settings["weights"]


@pytest.mark.slow
def test_several_people(by_deca, measured):
    """Each stands in a place of their own, with their own head."""
    two = by_deca[1](
        people=[{"reference": measured[0]}, {"reference": measured[1], "head": {"yaw": -10}}],
        prompt=PROMPT,
        size=(96, 64),
    )
    assert two.images.shape == (1, 64, 96, 3) and len(two.subjects) == 2
    left, right = (np.flatnonzero(look.hints.any(axis=(0, 2))).mean() for look in two.subjects)
    assert left < 40 < 56 < right


def test_identity_files(by_deca, pipe, measured, tmp_path):
    deca_pipe, person = by_deca[1], measured[0]
    path = tmp_path / "her.identity"
    identity_file.save(path, person, deca_pipe.head_name)
    again = deca_pipe.person(path)
    for field in dataclasses.fields(person.head):
        np.testing.assert_array_equal(
            getattr(again.head, field.name), getattr(person.head, field.name)
        )
    # A head that was fitted is not what this model's hints are drawn from; the other way round it
    # can be used.
    fitted = Pipeline(
        deca_pipe.config,
        {name: p for name, p in deca_pipe.params.items() if name != "deca_encoder"},
        deca_pipe.graphs,
    )
    assert fitted.person(path).head.albedo.ndim == 3
    identity_file.save(path, person, fitted.head_name)
    with pytest.raises(PhotoError, match="head flame by DECA: make it again"):
        deca_pipe.person(path)
    with pytest.raises(PhotoError, match="make it again"):
        pipe.person(path)


def test_commands(by_deca, astronaut, tilted, tmp_path, capsys):
    """identity, generate with a head photo and numbers, and the same picture again."""
    model = str(by_deca[0])
    write_png(tmp_path / "me.png", astronaut)
    write_png(tmp_path / "head.png", tilted)
    assert (
        main(
            [
                "identity",
                "--reference",
                str(tmp_path / "me.png"),
                "--model",
                model,
                "--out",
                str(tmp_path / "me.identity"),
            ]
        )
        == 0
    )
    common = ["generate", "--model", model, "--head-from", str(tmp_path / "head.png")]
    assert (
        main(
            [
                *common,
                "--reference",
                str(tmp_path / "me.identity"),
                "--prompt",
                PROMPT,
                "--yaw",
                "15",
                "--expression",
                "smile=0.5",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    picture = tmp_path / "out" / "picture_00.png"
    capsys.readouterr()
    assert (
        main(
            [
                *common,
                "--reference",
                str(tmp_path / "me.identity"),
                "--repeat",
                str(picture),
                "--out",
                str(tmp_path / "again"),
            ]
        )
        == 0
    )
    assert "not the one" not in capsys.readouterr().err
    np.testing.assert_array_equal(
        *(np.asarray(Image.open(path)) for path in (picture, tmp_path / "again" / "picture_00.png"))
    )


def test_without_deca_or_its_texture(by_deca, flame_folder, caplog, tmp_path, monkeypatch):
    """Fitted heads, and a notice of what is missing; nothing for the shipped head; a clear line
    without FLAME.
    """
    pipe = by_deca[1]
    without = {name: params for name, params in pipe.params.items() if name != "deca_encoder"}
    fitted = Pipeline(pipe.config, without, pipe.graphs)
    assert (
        len(caplog.records) == 1
        and "published weights saw DECA's" in caplog.text
        and "--deca deca_model.tar" in caplog.text
    )
    assert fitted.head_of is None and fitted.head_name == "flame" and "head_by" not in fitted.record

    caplog.clear()
    for name in ("generic_model.pkl", "landmark_embedding.npy"):
        (tmp_path / name).symlink_to(flame_folder / name)
    monkeypatch.setenv(deca_head.VARIABLE, str(tmp_path))
    load_head.cache_clear()
    assert Pipeline(pipe.config, pipe.params, pipe.graphs).head_of is None
    assert f"head_template.obj in {tmp_path}; FLAME_texture.npz in {tmp_path}" in caplog.text
    newer = dataclasses.replace(
        pipe.head_model, flame=dataclasses.replace(pipe.head_model.flame, name="flame2023")
    )
    assert "generic_model.pkl" in deca_head.lacking(newer, flame_folder)[0]

    monkeypatch.delenv(deca_head.VARIABLE)
    load_head.cache_clear()
    with pytest.raises(HeadError, match="set CAPHUMAN_FLAME to the folder"):
        loading.load(by_deca[0])
    load_head.cache_clear()


@pytest.mark.slow
def test_flame_without_deca(by_deca, astronaut):
    """As with the shipped head: fitted to the landmarks, colors by vertex, the render within [0,
    1].
    """
    pipe = by_deca[1]
    fitted = Pipeline(
        pipe.config,
        {name: params for name, params in pipe.params.items() if name != "deca_encoder"},
        pipe.graphs,
    )
    person = fitted.person(astronaut)
    assert person.head.albedo.shape == (5023, 3) and person.confidence > 0.7
    seen = np.asarray(fitted.hints(person.head))
    assert seen[..., 6:].max() <= 1 and (seen[..., 3:6] > 0).any(axis=-1).mean() > 0.15


def test_evaluation_measures_heads_as_the_model_does(by_deca, measured):
    """The square itself, and a request for a smile; and the report's numbers come out."""
    pipe, people = by_deca[1], measured[:1]
    model = pipe.head_model
    subjects = [
        Subject(p.name, p.square, p.head, p, recognition_vectors(p.square, p.landmarks))
        for p in people
    ]
    (seen,) = measure_images(model, [people[0].square], pipe.head_of)
    expected = pipe.head_of(people[0].square, people[0].landmarks)
    np.testing.assert_allclose(seen.head.angles, expected.angles, atol=2)
    np.testing.assert_allclose(seen.head.expression, expected.expression, atol=0.2)
    request = prompt_suite.Request(0, 0, "smile=0.8", PROMPT, 0)
    smiling = prompt_suite.requested_head(model, people[0].head, request)
    asked, own = (HeadParams.of(model, head) for head in (smiling, people[0].head))
    results = statistics.compute(model, subjects, [Outcome(request, 0, asked, own, seen)])
    smile = results["expression"]["smile"]["changed"]
    assert smile["requests"] == 1 and 0.3 < smile["mean"]["copied"] < 1.2
    floor = run_measurement_floor(model, subjects, seed=0, batch=2, head_of=pipe.head_of)
    assert np.isfinite(
        statistics.compute(model, subjects, floor)["pose"]["yaw"]["all"]["mean"]["value"]
    )
