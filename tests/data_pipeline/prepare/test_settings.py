"""What decides records, and that everything that does is in the fingerprint."""

import dataclasses
import json
import shutil
from importlib.resources import files

import pytest

from caphuman_jax.errors import ModelFolderError, SettingError
from data_pipeline.prepare.settings import PrepareSettings, QualityThresholds
from data_pipeline.records.schema import features


@pytest.mark.parametrize("size, stored, least", [(512, 692, 142), (256, 346, 71)])
def test_sizes(size, stored, least):
    settings = PrepareSettings(size=size)
    assert settings.stored == stored and (settings.stored - size) % 2 == 0
    assert settings.min_face == least  # twofold enlarged it fills 1 / 1.8 of the picture
    assert settings.head_square / 1.8 == pytest.approx(stored / size)
    assert dataclasses.replace(settings, thresholds=QualityThresholds(min_face=37)).min_face == 37


def test_there_and_back_through_json():
    settings = PrepareSettings(
        size=256,
        model="mini",
        encode=("text", "moments"),
        thresholds=QualityThresholds(faces="largest", min_face=40.5),
        seed=3,
    )
    assert PrepareSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.encode == ("moments", "text")  # of one order, however it was asked for
    with pytest.raises(SettingError, match="no setting called color"):
        PrepareSettings.from_dict({"color": 1})
    with pytest.raises(SettingError, match="no setting called smile"):
        PrepareSettings.from_dict({"gate": {"smile": 1}})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": 100}, "multiple of 8"),
        ({"size": "big"}, "size must be a whole number"),
        ({"margin": 0.5}, "margin must be a number from 1 to 3"),
        ({"encode": ("moments",)}, "come from a model"),
        ({"encode": ("latents",), "model": "mini"}, "encode takes some of"),
        ({"encode": ("image_tokens",), "model": "mini"}, "leave image_tokens out"),
        ({"hints": "video"}, "hints is head or pictures"),
        ({"hold_out": 1}, "nobody to train on"),
        ({"captions": 0}, "captions must be"),
        ({"quality": True}, "quality must be"),
    ],
)
def test_what_cannot_be_used(fields, message):
    with pytest.raises(SettingError, match=message):
        PrepareSettings(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"faces": "two"}, "one or largest"),
        ({"max_yaw": -1}, "max_yaw"),
        ({"min_face": "37"}, "min_face"),
    ],
)
def test_gates_that_cannot_be_used(fields, message):
    with pytest.raises(SettingError, match=message):
        QualityThresholds(**fields)


def test_a_model_that_is_not_there():
    with pytest.raises(ModelFolderError, match="no model named nothing"):
        PrepareSettings(model="nothing", encode=("text",))


def test_every_setting_changes_the_fingerprint():
    plain = PrepareSettings(size=256)
    others = {
        "size": 512,
        "margin": 1.5,
        "quality": 90,
        "captions": 5,
        "hints": "pictures",
        "model": "mini",
        "same_person": "recognition",
        "hold_out": 8,
        "seed": 1,
    }
    gates = {
        "faces": "largest",
        "min_face": 50,
        "min_sharpness": 0.2,
        "max_yaw": 50.0,
        "max_pitch": 30.0,
        "max_roll": 30.0,
        "min_presence": 0.9,
        "min_confidence": 0.6,
        "max_outside": 0.1,
        "min_covered": 0.6,
        "drawings": "drop",
        "drawing_score": 1.0,
        "duplicates": "keep",
        "duplicate_bits": 3,
    }
    assert {f.name for f in dataclasses.fields(QualityThresholds)} == set(gates)
    assert {f.name for f in dataclasses.fields(PrepareSettings)} == {
        *others,
        "thresholds",
        "encode",
        "captioner",
    }
    changed = [dataclasses.replace(plain, **{name: value}) for name, value in others.items()]
    changed += [
        dataclasses.replace(plain, thresholds=QualityThresholds(**{name: value}))
        for name, value in gates.items()
    ]
    changed.append(PrepareSettings(size=256, model="mini", encode=("text",)))
    prints = [settings.fingerprint() for settings in (plain, *changed)]
    assert (
        len(set(prints)) == len(prints)
        and plain.fingerprint() == PrepareSettings(size=256).fingerprint()
    )


def test_the_models_numbers_count_and_not_where_it_lies(tmp_path):
    shutil.copytree(files("caphuman_jax") / "assets" / "mini", tmp_path / "copy")
    shutil.copytree(tmp_path / "copy", tmp_path / "other")
    described = json.loads((tmp_path / "other" / "config.json").read_text())
    described["files"]["vae"]["sha256"] = "0" * 64
    (tmp_path / "other" / "config.json").write_text(json.dumps(described))
    of = lambda model, encode: PrepareSettings(size=256, model=str(model), encode=encode)
    assert (
        of("mini", ("moments",)).fingerprint() == of(tmp_path / "copy", ("moments",)).fingerprint()
    )
    assert (
        of("mini", ("moments",)).fingerprint() != of(tmp_path / "other", ("moments",)).fingerprint()
    )
    assert (
        of("mini", ("text",)).fingerprint() == of(tmp_path / "other", ("text",)).fingerprint()
    )  # which uses no autoencoder


def test_hashes_are_of_the_files_that_measure():
    import hashlib

    hashes = PrepareSettings(size=256, model="mini", encode=("moments",)).network_hashes()
    assets = files("caphuman_jax") / "assets"
    for name in (
        "face/mobilefacenet_192.onnx",
        "face/blazeface_short_range.onnx",
        "head/anny_head.npz",
    ):
        assert hashes[name] == hashlib.sha256((assets / name).read_bytes()).hexdigest()
    assert (
        hashes["model/vae"]
        == hashlib.sha256((assets / "mini" / "vae.safetensors").read_bytes()).hexdigest()
    )
    assert "model/unet" not in hashes and list(hashes) == sorted(hashes)
    onnx = {f"face/{p.name}" for p in (assets / "face").iterdir() if p.name.endswith(".onnx")}
    assert onnx <= set(hashes)


def test_a_captioners_files_count(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    settings = PrepareSettings(captioner=str(tmp_path))
    before = settings.fingerprint()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert (
        "captioner/model.safetensors" in settings.network_hashes()
        and settings.fingerprint() != before
    )


def test_layout():
    layout = PrepareSettings(
        size=256, model="mini", encode=("moments", "text"), hints="pictures", captions=3
    ).layout()
    shapes = {feature.name: feature.shape for feature in features(layout)}
    assert (
        shapes["moments"] == (2, 32, 32, 16)
        and shapes["text"] == (3, 77, 128)
        and shapes["hints"] == (3 * 346, 346, 3)
    )
    assert (
        shapes["identity_input"] == (112, 112, 3)
        and shapes["head/albedo"] == (4801, 3)
        and "image_tokens" not in shapes
    )
    assert "hints" not in {feature.name for feature in features(PrepareSettings().layout())}
