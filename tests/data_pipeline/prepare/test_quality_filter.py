"""Measures of a photo's quality, on the shipped portrait spoilt in known ways."""

import cv2
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.face.face import find_faces
from data_pipeline.prepare import quality_filter
from data_pipeline.prepare.settings import PrepareSettings, QualityThresholds


@pytest.fixture(scope="module")
def face(astronaut):
    return find_faces(astronaut)[0]


def scaled(photo, factor):
    return cv2.resize(
        photo,
        None,
        fx=factor,
        fy=factor,
        interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC,
    )


def test_pixels_of_a_face(face):
    x, y = np.ptp(face.landmarks[:, :2], axis=0)
    assert max(x, y) == pytest.approx(
        quality_filter.face_pixels(face.landmarks), rel=0.02
    )  # her eyes are nearly level


def test_sharpness_falls_as_a_photo_is_blurred(astronaut, face):
    side = quality_filter.face_pixels(face.landmarks)
    values = [quality_filter.sharpness(astronaut, face.landmarks)]
    values += [
        quality_filter.sharpness(cv2.GaussianBlur(astronaut, (0, 0), part * side), face.landmarks)
        for part in (0.005, 0.01, 0.02, 0.03)
    ]
    assert all(a > b for a, b in zip(values, values[1:]))
    assert (
        values[0] > 2 * QualityThresholds().min_sharpness
        and values[-2] < QualityThresholds().min_sharpness
    )


@pytest.mark.parametrize("factor", [0.9, 2.0, 4.0])
def test_sharpness_is_of_the_face_and_not_of_the_resolution(astronaut, face, factor):
    """A larger scan of a blurred print is as blurred."""
    soft = cv2.GaussianBlur(astronaut, (0, 0), 0.02 * quality_filter.face_pixels(face.landmarks))
    one = quality_filter.sharpness(soft, face.landmarks)
    assert quality_filter.sharpness(scaled(soft, factor), face.landmarks * factor) == pytest.approx(
        one, rel=0.25
    )


def test_contrast_and_brightness_do_not_count(astronaut, face):
    one = quality_filter.sharpness(astronaut, face.landmarks)
    dim = (astronaut * 0.5 + 20).astype(np.uint8)
    assert quality_filter.sharpness(dim, face.landmarks) == pytest.approx(one, rel=0.15)
    assert quality_filter.sharpness(np.full_like(astronaut, 90), face.landmarks) == 0


def test_difference_hash_of_a_gradient():
    ramp = np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], 80, axis=0).repeat(
        3, axis=2
    )
    assert (
        quality_filter.difference_hash(ramp) == 2**64 - 1
        and quality_filter.difference_hash(ramp[:, ::-1]) == 0
    )
    half = np.concatenate(
        [ramp[:, ::-1], ramp]
    )  # the upper four rows of eight fall, the lower rise
    assert quality_filter.difference_hash(half) == 2**32 - 1


def test_hashes_of_like_pictures(astronaut):
    import io

    file = io.BytesIO()
    Image.fromarray(astronaut).resize((300, 300)).save(file, "JPEG", quality=40)
    again = np.asarray(Image.open(file))
    bits = lambda a, b: (
        quality_filter.difference_hash(a) ^ quality_filter.difference_hash(b)
    ).bit_count()
    assert bits(astronaut, again) <= QualityThresholds().duplicate_bits
    assert bits(astronaut, astronaut[:, ::-1]) > 16 and bits(astronaut, astronaut[::-1]) > 16


def test_limits():
    settings = PrepareSettings(size=256)
    marks = np.zeros((478, 3), np.float32)
    marks[:, 0], marks[:, 1] = np.linspace(100, 180, 478), np.tile([100, 200], 239)
    marks[[33, 263], :2] = [[120, 150], [160, 150]]  # level eyes; the box is 80 × 100
    reason = lambda *args, **kw: (quality_filter.by_landmarks(settings, *args, **kw) or (None,))[0]
    assert reason(marks, 1.0, (300, 300)) is None
    assert reason(marks, 0.7, (300, 300)) == "presence"
    assert reason(marks * 0.7, 1.0, (300, 300)) == "small"  # 70 pixels, and 71 are asked for
    assert reason(marks, 1.0, (180, 300)) == "cut_off"
    reason, detail = quality_filter.by_landmarks(settings, marks * 0.7, 1.0, (300, 300))
    assert detail == "70 pixels, at least 71 are asked for"

    assert quality_filter.by_covered(settings, np.array([0, 0, 346, 346.0])) is None
    assert (
        quality_filter.by_covered(settings, np.array([45, 45, 45 + 128, 45 + 256.0])) is None
    )  # half
    assert (
        quality_filter.by_covered(settings, np.array([45, 45, 45 + 127, 45 + 256.0]))[0] == "tight"
    )
    assert (
        quality_filter.by_sharpness(settings, 0.5) is None
        and quality_filter.by_sharpness(settings, 0.05)[0] == "blurred"
    )
    assert (
        quality_filter.by_drawing(settings, 9.0) is None  # kept by default
    )
    drop = PrepareSettings(thresholds=QualityThresholds(drawings="drop"))
    assert quality_filter.by_drawing(drop, 3.0) is None  # ordinary photos have up to 3
    assert quality_filter.by_drawing(drop, 4.0)[0] == "drawing"

    head = lambda *angles, confidence=0.9: (
        quality_filter.by_head(settings, np.array(angles, float), confidence) or (None, "")
    )
    assert head(10, -10, 5)[0] is None
    assert (
        head(-61, 0, 0) == ("pose", "yaw -61°, at most 60° is allowed")
        and head(0, 41, 0)[0] == "pose"
        and head(0, 0, 50)[0] == "pose"
    )
    assert (
        head(0, 0, 0, confidence=0.2)[0] == "no_head"
        and head(np.nan, 0, 0)[0] == "no_head"
        and head(0, 0, 0, confidence=np.nan)[0] == "no_head"
    )
