import cv2
import numpy as np
import pytest

from caphuman_jax.face import align, recognition
from caphuman_jax.face.face import find_faces


def _vectors(picture):
    (face,) = find_faces(picture)
    return recognition.identity(picture, face.landmarks)[0], recognition.dlib_vector(
        picture, face.landmarks
    )


def _jpeg(picture):
    return cv2.imdecode(
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p[:, ::-1],
        lambda p: p[20:300, 60:400],
        lambda p: cv2.resize(p, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA),
        lambda p: align.warp(p, align.crop_transform([225, 128], 300, 0.5, 300), 300),
        lambda p: (p * 0.7 + 20).astype(np.uint8),
        _jpeg,
    ],
    ids=["mirrored", "cropped", "smaller", "turned", "darker", "jpeg"],
)
def test_the_same_person_in_another_picture(astronaut, change):
    a, b = _vectors(astronaut), _vectors(np.ascontiguousarray(change(astronaut)))
    assert a[0] @ b[0] > 0.85
    assert (
        a[1] @ b[1] > 0.95 * np.linalg.norm(a[1]) * np.linalg.norm(b[1])
        and np.linalg.norm(a[1] - b[1]) < 0.5
    )


def test_a_face_made_of_other_proportions_is_someone_else(astronaut, astronaut_face):
    """Stretched, flattened and recolored, the aligned crop must move far away: the vectors are not
    constant.
    """
    crop = recognition.mobilefacenet_crop(astronaut, astronaut_face.landmarks)
    other = 255 - cv2.resize(crop[20:100, 40:], (112, 112))
    vectors, features = recognition.mobilefacenet(np.stack([crop, other]))
    assert vectors[0] @ vectors[1] < 0.4
    assert np.abs(features[0] - features[1]).mean() > 0.3


def test_shapes_and_norms(astronaut, astronaut_face):
    crops = np.stack([recognition.mobilefacenet_crop(astronaut, astronaut_face.landmarks)] * 2)
    vectors, features = recognition.mobilefacenet(crops)
    assert crops.shape == (2, 112, 112, 3) and crops.dtype == np.uint8
    assert (
        vectors.shape == (2, 192)
        and features.shape == (2, 49, 512)
        and vectors.dtype == features.dtype == np.float32
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        recognition.identity(astronaut, astronaut_face.landmarks)[0], vectors[0], atol=1e-4
    )
    crop = recognition.dlib_crop(astronaut, astronaut_face.landmarks)
    assert crop.shape == (150, 150, 3) and recognition.dlib(crop[None]).shape == (1, 128)


def test_features_are_a_map_of_the_crop(astronaut, astronaut_face):
    """Row by row: changing the crop's top left corner moves the first token more than the last."""
    crop = recognition.mobilefacenet_crop(astronaut, astronaut_face.landmarks)
    changed = crop.copy()
    changed[:20, :20] = 255 - changed[:20, :20]
    _, features = recognition.mobilefacenet(np.stack([crop, changed]))
    moved = np.abs(features[0] - features[1]).mean(-1).reshape(7, 7)
    assert moved[0, 0] > 3 * moved[6, 6] and moved[0, 0] > moved[0, 6] and moved[0, 0] > moved[6, 0]


def test_crops_put_the_points_on_the_template(astronaut_face):
    points = align.five_points(astronaut_face.landmarks)
    for template in (recognition.MOBILEFACENET_TEMPLATE, recognition.DLIB_TEMPLATE):
        there = align.apply(align.similarity_transform(points, template), points)
        assert np.linalg.norm(there - template, axis=1).max() < 0.15 * np.ptp(
            template
        )  # she smiles: wide mouth
