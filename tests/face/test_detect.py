import cv2
import numpy as np
import pytest

from caphuman_jax.face import align, detect
from caphuman_jax.face.detect import Detection, anchors, decode, merge_overlapping, search
from caphuman_jax.face.face import find_faces


def test_anchors_known_answer():
    """As MediaPipe's SsdAnchorsCalculator gives for strides 8, 16, 16, 16 of 128 pixels."""
    a = anchors()
    assert a.shape == (896, 2)
    np.testing.assert_array_equal(
        a[:4], [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32], [3 / 32, 1 / 32]]
    )
    np.testing.assert_array_equal(a[32], [1 / 32, 3 / 32])
    np.testing.assert_array_equal(a[511], [31 / 32, 31 / 32])
    np.testing.assert_array_equal(a[512:518], np.full((6, 2), 1 / 16))
    np.testing.assert_array_equal(a[518], [3 / 16, 1 / 16])
    np.testing.assert_array_equal(a[895], [15 / 16, 15 / 16])


def test_decode_known_answer():
    regressors, logits = np.zeros((896, 16), np.float32), np.full(896, -1000.0, np.float32)
    regressors[512] = [12.8, 6.4, 25.6, 51.2, *range(0, 12)]
    logits[512] = 1000.0
    (found,) = decode(regressors, logits)
    center = np.array([0.1 + 1 / 16, 0.05 + 1 / 16])
    np.testing.assert_allclose(
        found.box, [*(center - [0.1, 0.2]), *(center + [0.1, 0.2])], rtol=1e-5
    )
    np.testing.assert_allclose(
        found.keypoints, 1 / 16 + np.arange(12).reshape(6, 2) / 128, rtol=1e-5
    )
    assert found.score == 1.0


def test_overlapping_boxes_become_their_weighted_mean():
    def at(x, score):
        return Detection(np.array([x, 0, x + 10.0, 10.0]), score, np.full((6, 2), x))

    merged = merge_overlapping([at(0, 0.5), at(100, 0.6), at(2, 0.75)])
    assert [d.score for d in merged] == [0.75, 0.6]
    np.testing.assert_allclose(merged[0].box, [1.2, 0, 11.2, 10])
    np.testing.assert_allclose(merged[0].keypoints, np.full((6, 2), 1.2))
    np.testing.assert_array_equal(merged[1].box, [100, 0, 110, 10])
    assert merge_overlapping([]) == []


@pytest.mark.parametrize("angle", [0, 30, -50, 90, 180, 215])
def test_finds_the_face_where_it_was_turned_to(astronaut, astronaut_face, angle):
    matrix = align.crop_transform([225, 128], 400, np.radians(angle), 500)
    (found,) = find_faces(align.warp(astronaut, matrix, 500))
    eyes, nose = astronaut_face.landmarks[[468, 473], :2], astronaut_face.landmarks[4, :2]
    expected = align.apply(matrix, np.stack([*eyes, nose]))
    assert np.abs(found.keypoints[:3] - expected).max() < 0.12 * astronaut_face.size * 500 / 400
    assert (found.box[:2] < expected.min(0)).all() and (found.box[2:] > expected.max(0)).all()


@pytest.mark.parametrize("scale", [0.15, 0.5, 3.0])
def test_finds_the_face_at_every_scale(astronaut, astronaut_face, scale):
    (found,) = find_faces(
        cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    )
    assert np.abs(found.box / scale - astronaut_face.box).max() < 0.15 * astronaut_face.size


def test_finds_a_face_that_fills_the_picture(astronaut, astronaut_face):
    x0, y0, x1, y1 = astronaut_face.box.astype(int)
    (found,) = find_faces(np.ascontiguousarray(astronaut[y0:y1, x0:x1]))
    assert (
        np.abs(found.keypoints + [x0, y0] - astronaut_face.keypoints)[:4].max()
        < 0.1 * astronaut_face.size
    )


def test_nothing_where_nothing_is(no_face):
    assert find_faces(np.zeros((300, 200, 3), np.uint8)) == []
    assert find_faces(no_face) == []


def test_search_looks_at_smaller_and_smaller_parts(astronaut):
    """A face too small for the whole picture is in a later list, and only there."""
    canvas = np.full((1200, 1600, 3), 110, np.uint8)
    small = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    canvas[400:656, 1000:1256] = small
    seen = [
        any(np.linalg.norm(d.box.reshape(2, 2).mean(0) - (1112, 464)) < 12 for d in found)
        for found in search(canvas)
    ]
    assert seen[:3] == [False, False, True]  # whole and halves, margin, quarters


@pytest.mark.parametrize("shape", [(16, 16), (16, 900), (3000, 20)])
def test_odd_shapes(shape):
    assert find_faces(np.full(shape + (3,), 90, np.uint8)) == []


@pytest.mark.parametrize("length", [128, 129, 191, 192, 193, 500, 2048])
def test_tiles_cover_and_overlap(length):
    starts = detect._starts(length)
    assert starts[0] == 0 and starts[-1] == length - detect.SIZE
    assert (np.diff(starts) <= detect.SIZE // 2 + 1).all() and (np.diff(starts) > 0).all()
