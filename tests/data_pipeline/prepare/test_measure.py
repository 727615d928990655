"""The shipped portrait, as it is and spoilt in known ways, measured into records."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
from importlib.resources import files

import cv2
import flame_standin
import jax
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.config import MINI, ImageEncoderConfig
from caphuman_jax.errors import DataError
from caphuman_jax.face.align import apply
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.face.face import find_faces
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.models import deca_head
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.models import registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.person.identity import image_tokens
from caphuman_jax.person.person import analyze_photo
from caphuman_jax.weights import model_folder
from data_pipeline.prepare.measure import Dropped, Measured, Measurer
from data_pipeline.prepare.settings import PrepareSettings, QualityThresholds
from data_pipeline.records import tf_example
from data_pipeline.records.schema import features
from data_pipeline.sources.base import Item

SETTINGS = PrepareSettings(size=64, hints="pictures", captions=3)
CLIP = dataclasses.replace(
    MINI,
    name="tiny",
    image_encoder=ImageEncoderConfig(
        image_size=56, patch=14, width=16, layers=1, heads=2, mlp_width=16
    ),
    text=dataclasses.replace(MINI.text, width=16, layers=1, heads=2, mlp_width=16, embed_width=4),
    unet=dataclasses.replace(MINI.unet, cross_attention_dim=16),
    identity=dataclasses.replace(MINI.identity, image_tokens="clip", image_width=16),
)
ORIGINAL = (files("caphuman_jax") / "assets" / "astronaut_nasa.png").read_bytes()


def encoded(picture, ending="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, ending, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def measurer():
    return Measurer(SETTINGS)


@pytest.fixture(scope="module")
def face(astronaut):
    return find_faces(astronaut)[0]


@pytest.fixture(scope="module")
def batch(astronaut, face):
    """{key: (item, file)} of everything that is measured here."""
    side = face.size
    turned = np.asarray(
        Image.fromarray(astronaut).rotate(-60, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    )
    (x, y), _ = head_square(face.landmarks)
    x, y = int(x), int(y)
    photos = {
        "again.jpg": encoded(astronaut, "JPEG", quality=90),
        "blank.png": encoded(np.full((80, 80, 3), 128, np.uint8)),
        "blurred.png": encoded(cv2.GaussianBlur(astronaut, (0, 0), 0.02 * side)),
        "broken.jpg": b"not a picture",
        "empty.jpg": b"",
        "cut.png": encoded(np.ascontiguousarray(astronaut[:, x - 30 :])),
        "half.jpg": encoded(astronaut, "JPEG")[:4000],
        "original.png": ORIGINAL,
        "pixel.png": encoded(astronaut[:1, :1]),
        "small.png": encoded(cv2.resize(astronaut, (64, 64), interpolation=cv2.INTER_AREA)),
        "tight.png": encoded(astronaut[y - 62 : y + 62, x - 60 : x + 60]),
        "turned.png": encoded(turned),
        "two.png": encoded(np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)),
    }
    return {
        key: (
            Item(
                key,
                "eileen" if key == "original.png" else "",
                ("given",) if key == "again.jpg" else (),
            ),
            data,
        )
        for key, data in photos.items()
    }


@pytest.fixture(scope="module")
def results(measurer, batch):
    gone = Item("gone.jpg"), DataError("gone.jpg: cannot be read (it is gone)")
    found = measurer.measure([*batch.values(), gone])
    assert [result.key for result in found] == [*batch, "gone.jpg"]
    return {result.key: result for result in found}


@pytest.fixture(scope="module")
def record(results):
    assert isinstance(results["original.png"], Measured)
    return results["original.png"].record


def picture(record, name):
    return tf_example.decode_image(
        next(f for f in features(SETTINGS.layout()) if f.name == name), record[name]
    )


@pytest.mark.parametrize(
    "key, reason",
    [
        ("blank.png", "no_face"),
        ("blurred.png", "blurred"),
        ("broken.jpg", "unreadable"),
        ("empty.jpg", "unreadable"),
        ("half.jpg", "unreadable"),
        ("pixel.png", "unreadable"),
        ("gone.jpg", "unreadable"),
        ("two.png", "several_faces"),
        ("turned.png", "pose"),
        ("tight.png", "tight"),
        ("cut.png", "cut_off"),
        ("small.png", "small"),
    ],
)
def test_why_photos_are_dropped(results, key, reason):
    assert isinstance(results[key], Dropped) and results[key].reason == reason


def test_details_are_for_people(results):
    assert (
        results["gone.jpg"].detail == "gone.jpg: cannot be read (it is gone)"
        and results["two.png"].detail == "2 faces"
    )
    assert "roll" in results["turned.png"].detail and "pixel" in results["pixel.png"].detail


def test_the_largest_of_several_faces_when_asked(astronaut, batch):
    measurer = Measurer(
        PrepareSettings(
            size=64, thresholds=QualityThresholds(faces="largest", max_roll=90, min_sharpness=0)
        )
    )
    smaller = cv2.resize(astronaut[:, ::-1], (256, 256), interpolation=cv2.INTER_AREA)
    both = np.concatenate([np.pad(smaller, ((0, 256), (0, 0), (0, 0))), astronaut], axis=1)
    found = measurer.measure(
        [(Item("both"), encoded(both)), batch["turned.png"], batch["original.png"]]
    )
    assert all(isinstance(result, Measured) for result in found)
    assert found[0].record["face_px"] == pytest.approx(found[2].record["face_px"], rel=0.02)
    assert np.dot(*(found[i].record["recognition/mobilefacenet"] for i in (0, 2))) > 0.97


def test_a_record_is_what_its_features_say(record):
    found = features(SETTINGS.layout())
    complete = record | {"partners": np.full(3, -1, np.int64)}
    back = tf_example.decode(found, tf_example.encode(found, complete))
    assert set(back) == {feature.name for feature in found}
    for feature in found:
        if feature.kind == "array" and feature.low is not None:
            assert back[feature.name].min() >= feature.low, feature.name
        if feature.kind == "array" and feature.high is not None:
            assert back[feature.name].max() <= feature.high, feature.name
        if feature.kind == "image":
            assert tf_example.decode_image(feature, back[feature.name]).dtype == np.uint8
        if feature.kind == "array" and feature.name != "colours":
            assert np.isfinite(back[feature.name]).all()
    assert record["person"] == "eileen" and record["sha256"] == hashlib.sha256(ORIGINAL).hexdigest()


def test_the_square_and_what_lies_where_in_it(record, astronaut, face):
    stored = SETTINGS.stored
    assert stored == 86
    center, side = head_square(face.landmarks, 1.8 * 86 / 64)
    square, place, covered = crop_square(astronaut, center, side, stored)
    assert np.abs(picture(record, "photo").astype(int) - square).mean() < 3  # JPEG
    np.testing.assert_allclose(
        record["landmarks"][:, :2] * stored, apply(place, face.landmarks[:, :2]), atol=0.01
    )
    np.testing.assert_allclose(record["landmarks"][:, 2], face.landmarks[:, 2] / side, atol=1e-4)
    np.testing.assert_allclose(record["covered"] * stored, covered, atol=1e-3)
    assert record["face_px"] == pytest.approx(side / 1.8 * 64 / 86, rel=1e-4)
    region, person = picture(record, "region")[..., 0], picture(record, "person_mask")[..., 0]
    inside = (record["landmarks"][:, :2] * 256).astype(int)
    assert (region[inside[4, 1], inside[4, 0]], region[2, 2]) == (255, 0) and set(
        np.unique(region)
    ) == {0, 255}
    assert (
        person[region > 0].mean() > 240 and person[60:120, :20].mean() < 60
    )  # the flag and the shuttle are not persons


def test_the_head_is_that_of_use(record, astronaut):
    """As `person` fits it, in the pixels of the stored square, and where the landmarks are."""
    model, stored = load_head(), SETTINGS.stored
    head = Head(
        **{
            name: record[f"head/{name}"]
            for name in (
                "identity",
                "expression",
                "rotation",
                "scale",
                "translation",
                "light",
                "residual",
            )
        },
        albedo=record["head/albedo"].astype(np.float32) / 255,
        size=np.full(2, stored, np.float32),
    )
    points = np.asarray(jax.jit(lambda head: model.landmarks(posed(model, head)[0]))(head))[:, :2]
    valid = np.asarray(model.landmark_valid)
    off = np.linalg.norm(points - record["landmarks"][:, :2] * stored, axis=1)[valid]
    assert np.median(off) < 0.03 * np.linalg.norm(points[33] - points[263])
    used = analyze_photo(model, astronaut, 64)
    np.testing.assert_allclose(np.asarray(head.angles), np.asarray(used.head.angles), atol=0.5)
    np.testing.assert_allclose(head.scale, used.head.scale, rtol=0.01)
    np.testing.assert_allclose(
        head.translation, used.head.translation + 11, atol=0.3
    )  # the middle begins at pixel 11
    assert (
        float(record["recognition/mobilefacenet"] @ used.vectors[0]) > 0.9
    )  # a crop of 35 pixels, enlarged threefold; 0.9999 at 256
    skin = np.asarray(model.face_weight) > 0.9
    assert np.abs(head.albedo - np.asarray(used.head.albedo))[skin].mean() < 0.03

    drawn, alpha = (
        np.asarray(x) for x in render_hints(model, head, stored, stored, with_alpha=True)
    )
    kept = picture(record, "hints").reshape(3, stored, stored, 3)
    for part, low in ((0, 0.5), (1, 0), (2, 0)):
        wanted = drawn[..., 3 * part : 3 * part + 3] * (0.5 if part == 0 else 1) + low
        assert np.abs(kept[part] / 255 - wanted).max() < 0.5 / 255 + 1e-5
    region = (
        cv2.resize(picture(record, "region"), (stored, stored), interpolation=cv2.INTER_AREA) > 127
    )
    assert (alpha[..., 0] > 0)[region].mean() > 0.95


def test_texts(results, record):
    assert (
        len(record["captions"]) == 3
        and all("person" in text for text in record["captions"])
        and record["caption_ids"].shape == (3, 77)
    )
    said = json.loads(record["attributes"])
    assert said["smile"] == "smiling" and said["kind"] == "colour"
    given = results["again.jpg"].record
    assert (
        given["captions"] == ["given"] and (given["caption_ids"] == given["caption_ids"][0]).all()
    )
    assert np.array_equal(given["caption_ids"][:1], ClipTokenizer()(["given"]))


def test_the_same_picture_has_nearly_the_same_hash(results):
    assert (
        results["again.jpg"].dhash ^ results["original.png"].dhash
    ).bit_count() <= QualityThresholds().duplicate_bits


def test_nothing_depends_on_what_is_in_the_same_batch(measurer, batch, record, results):
    alone = measurer.measure([batch["original.png"]])[0]
    assert alone.dhash == results["original.png"].dhash
    for name, value in record.items():
        assert np.array_equal(value, alone.record[name]), name


def test_an_empty_batch_and_one_of_rubbish(measurer):
    assert measurer.measure([]) == []
    assert [
        result.reason for result in measurer.measure([(Item("a"), b""), (Item("b"), b"x")])
    ] == ["unreadable"] * 2


@pytest.mark.slow
def test_the_same_bytes_in_processes_of_one_thread_and_of_many(tmp_path):
    code = """if True:
        import hashlib, sys, numpy as np
        from data_pipeline.records import tf_example
        from data_pipeline.records.schema import features
        from data_pipeline.prepare.measure import Measurer
        from data_pipeline.prepare.settings import PrepareSettings
        from data_pipeline.sources.base import Item
        settings = PrepareSettings(size=64, hints="pictures")
        (found,) = Measurer(settings).measure([(Item("a"), open(sys.argv[1], "rb").read())])
        record = found.record | {"partners": np.full(3, -1, np.int64)}
        message = tf_example.encode(features(settings.layout()), record)
        print(hashlib.sha256(message).hexdigest())
    """
    (tmp_path / "a.png").write_bytes(ORIGINAL)
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "OMP_NUM_THREADS")
    }
    single = {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.png")],
            env=plain | extra,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for extra in ({}, single)
    ]
    assert said[0] == said[1] and len(said[0].strip()) == 64


def test_what_a_model_of_clip_sees(tmp_path):
    """The face, white around it, in the middle of CLIP's picture; and what its encoder makes of
    that.
    """
    networks = registry.init(CLIP, jax.random.key(0), only=("image_encoder",))
    model_folder.save_model(
        tmp_path / "model", CLIP, {name: params for name, (_, params) in networks.items()}
    )
    settings = PrepareSettings(
        size=64, margin=1.34375, model=str(tmp_path / "model"), encode=("image_tokens",), captions=1
    )
    (found,) = Measurer(settings).measure([(Item("a"), ORIGINAL)])
    layout = settings.layout()
    kinds = {feature.name: feature for feature in features(layout)}
    tf_example.encode(kinds.values(), found.record | {"partners": np.full(3, -1, np.int64)})
    seen = tf_example.decode_image(kinds["identity_input"], found.record["identity_input"])
    assert (
        seen.shape == (56, 56, 3)
        and (seen[:6] > 245).all()
        and (seen[:, :6] > 245).all()
        and seen[28, 28].min() < 200
    )
    graph, params = networks["image_encoder"]
    tokens = np.asarray(image_tokens(graph, params, seen[None]))[0]
    assert found.record["image_tokens"].shape == layout.image_tokens == (17, 16)
    assert (
        np.abs(tokens - found.record["image_tokens"]).mean() < 0.1 * np.abs(tokens).mean()
    )  # which was computed before JPEG


@pytest.mark.slow
@pytest.mark.parametrize("by_deca", [False, True])
def test_heads_of_flame(tmp_path, monkeypatch, astronaut, by_deca):
    """Fitted to landmarks, and by DECA where the model folder has its encoder: as `person.measure`
    gets them in use.
    """
    (tmp_path / "flame").mkdir()
    flame_standin.write_folder(tmp_path / "flame")
    monkeypatch.setenv(deca_head.VARIABLE, str(tmp_path / "flame"))
    load_head.cache_clear()
    encoder = {"deca_encoder": flame_standin.deca_encoder(astronaut)[1]} if by_deca else {}
    model_folder.save_model(tmp_path / "model", dataclasses.replace(MINI, head="flame"), encoder)
    settings = PrepareSettings(
        size=64,
        model=str(tmp_path / "model"),
        hints="pictures",
        thresholds=QualityThresholds(min_confidence=0),
    )
    measurer = Measurer(settings)
    (found,) = measurer.measure([(Item("a"), ORIGINAL)])
    tf_example.encode(
        features(settings.layout()), found.record | {"partners": np.full(3, -1, np.int64)}
    )
    model = load_head("flame")
    used = analyze_photo(model, astronaut, 64, head_of=measurer._head_of).head
    assert found.record["head/albedo"].shape == ((256, 256, 3) if by_deca else (len(model.mean), 3))
    np.testing.assert_allclose(found.record["head/translation"], used.translation + 11, atol=0.3)
    np.testing.assert_allclose(found.record["head/identity"], used.identity, atol=0.05)
    np.testing.assert_allclose(found.record["head/rotation"], used.rotation, atol=0.01)
    assert (
        "flame/generic_model.pkl" in settings.network_hashes()
        and ("model/deca_encoder" in settings.network_hashes()) == by_deca
    )
    load_head.cache_clear()
