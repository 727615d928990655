import cv2
import numpy as np
import pytest

from caphuman_jax.face import align
from caphuman_jax.face.detect import Detection
from caphuman_jax.face.face import find_faces
from caphuman_jax.face.landmarks import expression_names, expression_weights, find_landmarks

# Landmarks and the ones on the other side of the face.
PAIRS = np.array(
    [
        (33, 263),
        (133, 362),
        (61, 291),
        (468, 473),
        (234, 454),
        (70, 300),
        (105, 334),
        (1, 1),
        (4, 4),
        (10, 10),
        (152, 152),
    ]
)


@pytest.mark.parametrize("angle", [20, -75, 90, 180])
def test_turn_with_the_picture(astronaut, astronaut_face, angle):
    matrix = align.crop_transform([225, 128], 300, np.radians(angle), 400)
    (face,) = find_faces(align.warp(astronaut, matrix, 400))
    error = np.linalg.norm(
        face.landmarks[:, :2] - align.apply(matrix, astronaut_face.landmarks[:, :2]), axis=1
    )
    assert error.mean() < 0.01 * face.size and error.max() < 0.03 * face.size
    np.testing.assert_allclose(
        face.landmarks[:, 2], astronaut_face.landmarks[:, 2] * 400 / 300, atol=0.05 * face.size
    )
    assert np.corrcoef(face.expression, astronaut_face.expression)[0, 1] > 0.97


def test_mirror_with_the_picture(astronaut, astronaut_face):
    (face,) = find_faces(astronaut[:, ::-1])
    expected = astronaut_face.landmarks[PAIRS[:, 1]] * [-1, 1, 1] + [astronaut.shape[1], 0, 0]
    assert np.abs(face.landmarks[PAIRS[:, 0]] - expected)[:, :2].max() < 0.03 * face.size
    names = expression_names()
    swapped = [
        names.index(n.replace("Left", "*").replace("Right", "Left").replace("*", "Right"))
        for n in names
    ]
    assert np.corrcoef(face.expression, astronaut_face.expression[swapped])[0, 1] > 0.93


@pytest.mark.parametrize("scale", [0.4, 2.0, 5.0])
def test_scale_with_the_picture(astronaut, astronaut_face, scale):
    flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    (face,) = find_faces(cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=flags))
    error = np.linalg.norm((face.landmarks / scale - astronaut_face.landmarks)[:, :2], axis=1)
    assert error.mean() < 0.01 * astronaut_face.size


def test_lie_where_they_should(astronaut_face):
    """Places read off the photo by eye."""
    marks = astronaut_face.landmarks[:, :2]
    for index, place in {
        468: (203, 101),
        473: (246.5, 103),
        4: (224, 127),
        61: (202, 139.5),
        291: (246, 140.5),
        152: (223, 178),
    }.items():
        assert np.linalg.norm(marks[index] - place) < 3, (index, marks[index])
    assert (
        astronaut_face.landmarks[4, 2] < astronaut_face.landmarks[[234, 454], 2].min()
    )  # the nose is nearer than the ears


def test_presence_tells_a_face_from_a_wall(astronaut):
    keypoints = np.array([[60, 60], [90, 60], [75, 75], [75, 90], [50, 65], [100, 65]], float) + [
        300,
        0,
    ]
    wall = Detection(np.array([350, 50, 400, 100.0]), 0.9, keypoints)
    assert find_landmarks(np.full((200, 500, 3), 120, np.uint8), wall)[1] < 0.1


def test_expressions(astronaut_face):
    names = expression_names()
    assert len(names) == len(set(names)) == 52
    assert {
        "mouthSmileLeft",
        "mouthSmileRight",
        "jawOpen",
        "eyeBlinkLeft",
        "browInnerUp",
        "tongueOut",
    } - set(names) == {"tongueOut"}
    assert (
        astronaut_face.expression.shape == (52,)
        and 0 <= astronaut_face.expression.min() <= astronaut_face.expression.max() <= 1
    )
    weights = astronaut_face.expressions
    assert (
        weights["mouthSmileLeft"] > 0.6
        and weights["mouthSmileRight"] > 0.6
        and weights["mouthFrownLeft"] < 0.1
    )
    moved = astronaut_face.landmarks * 3 + np.array([1000, -50, 0])
    np.testing.assert_allclose(expression_weights(moved), astronaut_face.expression, atol=1e-3)
    turned = astronaut_face.landmarks[:, :2] @ np.array([[0, -1], [1, 0]])
    np.testing.assert_allclose(expression_weights(turned), astronaut_face.expression, atol=1e-3)


def test_jaw_open_follows_the_landmarks(astronaut_face):
    """The same mouth pulled open must read as an open jaw."""
    open_mouth = astronaut_face.landmarks.copy()
    lower = [
        14,
        17,
        84,
        314,
        87,
        317,
        181,
        405,
        91,
        321,
        178,
        402,
        152,
        148,
        377,
        176,
        400,
        149,
        378,
    ]
    open_mouth[lower, 1] += 0.4 * astronaut_face.size
    i = expression_names().index("jawOpen")
    assert expression_weights(open_mouth)[i] > astronaut_face.expression[i] + 0.2
