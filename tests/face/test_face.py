import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.errors import NoFaceError, PhotoError
from caphuman_jax.face import recognition
from caphuman_jax.face.face import choose_face, find_faces
from caphuman_jax.head.face_fitting import face_region
from caphuman_jax.io.images import read_photo


@pytest.fixture(scope="module")
def two_people(astronaut):
    """The astronaut smaller on the left, mirrored and larger on the right."""
    person = astronaut[:384, 60:440]
    small = cv2.resize(person, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    canvas = np.full((384, small.shape[1] + person.shape[1], 3), 128, np.uint8)
    canvas[-small.shape[0] :, : small.shape[1]] = small
    canvas[:, small.shape[1] :] = person[:, ::-1]
    return canvas


def test_one_face(astronaut, astronaut_face):
    (face,) = find_faces(astronaut)
    np.testing.assert_array_equal(face.landmarks, astronaut_face.landmarks)
    region = face_region(face.landmarks, astronaut.shape[:2])
    assert region.shape == (512, 512)
    assert region[127, 222] and not region[300, 222] and 0.02 < region.mean() < 0.05
    assert (
        astronaut_face.presence > 0.99
        and astronaut_face.score > 0.8
        and 80 < astronaut_face.size < 110
    )


def test_two_faces_largest_first_with_a_notice(two_people, caplog):
    first, second = faces = find_faces(two_people)
    assert first.size > 1.3 * second.size and first.landmarks[4, 0] > second.landmarks[4, 0]
    with caplog.at_level(logging.WARNING, "caphuman_jax"):
        assert choose_face(faces, photo="group.jpg") is first
    assert "group.jpg shows 2 faces" in caplog.text
    caplog.clear()
    assert choose_face(faces, 1) is second and choose_face([first]) is first and not caplog.text
    region = face_region(second.landmarks, two_people.shape[:2])
    assert region[:, :228].any() and not region[:, 228:].any()
    a, b = (recognition.identity(two_people, face.landmarks)[0] for face in faces)
    assert a @ b > 0.8


def test_an_index_that_there_is_not(two_people, astronaut_face):
    faces = find_faces(two_people)
    for index in (2, -1):
        with pytest.raises(PhotoError, match=rf"no face {index} in .* 0 \(largest\) to 1"):
            choose_face(faces, index)
    with pytest.raises(PhotoError, match="one face, number 0"):
        choose_face([astronaut_face], 1)


def test_no_face(no_face, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    assert find_faces(no_face) == find_faces(noise) == []
    path = tmp_path / "suit.png"
    Image.fromarray(no_face).save(path)
    with pytest.raises(NoFaceError, match="no face found in .*suit.png; use a photo") as caught:
        choose_face(find_faces(read_photo(path)), photo=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [(0, 0), (900, 1300), (433, 777)])
def test_a_small_face_in_a_large_picture(astronaut, astronaut_face, place):
    canvas = np.full((2000, 1600, 3), 110, np.uint8)
    y, x = place
    canvas[y : y + 300, x : x + 300] = astronaut[:300, 100:400]
    (face,) = find_faces(canvas)
    expected = astronaut_face.landmarks + np.array([x - 100, y, 0])
    assert np.abs(face.landmarks - expected)[:, :2].mean() < 0.01 * face.size


@pytest.mark.parametrize("kind", ["grey", "16 bit", "cmyk", "rgba", "sideways"])
def test_photos_of_every_kind(astronaut, astronaut_face, tmp_path, kind):
    photo, path, options = Image.fromarray(astronaut), tmp_path / "p.png", {}
    if kind == "grey":
        photo = photo.convert("L")
    elif kind == "16 bit":
        photo = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    elif kind == "cmyk":
        photo, path, options = photo.convert("CMYK"), tmp_path / "p.jpg", {"quality": 95}
    elif kind == "rgba":
        photo.putalpha(255)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        photo, options = photo.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
    photo.save(path, **options)
    image = read_photo(path)
    (face,) = find_faces(image)
    error = np.linalg.norm((face.landmarks - astronaut_face.landmarks)[:, :2], axis=1)
    assert image.shape == astronaut.shape and error.mean() < 0.015 * astronaut_face.size


def test_the_photo_is_left_as_it_was(astronaut):
    before = astronaut.copy()
    find_faces(astronaut)
    np.testing.assert_array_equal(astronaut, before)
