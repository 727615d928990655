"""A photo to a person: framing, measuring, identity files, and which networks know them."""

import dataclasses
import logging

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.config import ImageEncoderConfig
from caphuman_jax.errors import ModelFolderError, NoFaceError, PhotoError
from caphuman_jax.person import identity_file

PROMPT = "a photo of a person"


def test_person_is_framed_and_measured(person, pipe):
    assert person.square.shape == (64, 64, 3) and person.square.dtype == np.uint8
    low, high = person.landmarks[:, :2].min(0), person.landmarks[:, :2].max(0)
    np.testing.assert_allclose((low + high) / 2, 32, atol=1.5)
    assert 0.5 < (high - low).max() / 64 < 0.62
    assert person.confidence > 0.8 and np.abs(np.asarray(person.head.angles)).max() < 15
    assert person.vectors.shape == (1, 192) and np.linalg.norm(person.vectors) == pytest.approx(
        1, abs=1e-5
    )
    assert person.image_tokens.shape == (1, 49, 512)
    smile = person.head.expression[pipe.head_model.expression_names.index("mouthSmileLeft")]
    assert (
        0.4 < float(smile) <= 1
    )  # the astronaut smiles: expressions are in the head model's own order


def test_several_faces_and_none(pipe, two_faces, astronaut, caplog):
    with caplog.at_level(logging.WARNING):
        largest = pipe.person(two_faces)
    assert "2 faces" in caplog.text and largest.face_count == 2
    second = pipe.person(two_faces, face=1)
    assert second.face.size < 0.7 * largest.face.size
    with pytest.raises(NoFaceError, match="no face found"):
        pipe(reference=np.ascontiguousarray(astronaut[250:]), prompt=PROMPT)


def test_exif_rotated_photo_gives_the_same_person(pipe, person, astronaut, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90° for viewing
    Image.fromarray(np.rot90(astronaut)).save(tmp_path / "turned.png", exif=exif)
    turned = pipe.person(tmp_path / "turned.png")
    np.testing.assert_array_equal(turned.square, person.square)
    np.testing.assert_array_equal(turned.vectors, person.vectors)


def test_identity_file(pipe, person, tmp_path):
    path = tmp_path / "her.identity"
    identity_file.save(path, person, pipe.head_model.name)
    assert [file.name for file in tmp_path.iterdir()] == ["her.identity"]
    whole = path.read_bytes()
    for _ in range(8):  # the same person gives the same bytes
        identity_file.save(path, person, pipe.head_model.name)
        assert path.read_bytes() == whole
    again, base = (
        pipe(reference=path, prompt=PROMPT, head={"yaw": 5}),
        pipe(reference=person, prompt=PROMPT, head={"yaw": 5}),
    )
    np.testing.assert_array_equal(again.images, base.images)
    assert again.settings == base.settings
    with pytest.raises(PhotoError, match="make it again"):
        identity_file.load(path, pipe.head_model.name, "facenet and clip")
    for damage in (path.read_bytes()[:-50], b"no identity", b""):
        path.write_bytes(damage)
        with pytest.raises(PhotoError, match="damaged"):
            pipe(reference=path, prompt=PROMPT)
    with pytest.raises(PhotoError, match="does not exist"):
        pipe(reference="gone.identity", prompt=PROMPT)
    with pytest.raises(PhotoError, match="measured by"):
        pipe(reference=dataclasses.replace(person, known_by="facenet and clip"), prompt=PROMPT)


def test_arcface_must_be_the_one_of_the_training(pipe, person, monkeypatch):
    from caphuman_jax.face import arcface
    from caphuman_jax.person.identity import Identifier, View

    class Network:
        name, path = "w600k_r50", "w600k_r50.onnx"

        def __call__(self, crops):
            return np.ones((len(crops), 512), np.float32)

    monkeypatch.setattr(arcface, "find", Network)
    config = lambda name: dataclasses.replace(
        pipe.config,
        image_encoder=ImageEncoderConfig(),
        identity=dataclasses.replace(pipe.config.identity, image_tokens="clip", recognizer=name),
    )
    view = View(
        person.square, np.ones(person.square.shape[:2], bool), person.square, person.landmarks
    )
    assert Identifier(config("arcface/w600k_r50")).vectors([view, view]).shape == (2, 512)
    with pytest.raises(ModelFolderError, match="trained with the ArcFace network glintr100"):
        Identifier(config("arcface/glintr100")).vectors([view])
