import cv2
import numpy as np
import pytest

from caphuman_jax.face import segmentation
from caphuman_jax.face.face import find_faces


@pytest.fixture(scope="module")
def labels(astronaut, astronaut_face):
    return segmentation.parse_face(
        astronaut_face.landmarks, astronaut.shape[:2], segmentation.person_mask(astronaut)
    )


def test_every_class_where_it_belongs(labels, astronaut_face):
    def at(x, y):
        return segmentation.LABELS[labels[int(y), int(x)]]

    marks = astronaut_face.landmarks[:, :2]
    assert at(10, 500) == at(480, 50) == "background"
    assert at(170, 60) == at(220, 190) == at(60, 400) == "person"  # hair, neck, suit
    assert at(*marks[50]) == at(*marks[280]) == at(*marks[151]) == "skin"
    assert at(*marks[4]) == "nose" and at(*marks[468]) == at(*marks[473]) == "eyes"
    assert at(*marks[[105, 52]].mean(0)) == at(*marks[[334, 282]].mean(0)) == "brows"
    assert (
        at(*marks[[0, 13]].mean(0)) == "upper_lip" and at(*marks[[17, 14]].mean(0)) == "lower_lip"
    )
    assert at(*marks[[13, 14]].mean(0)) == "inner_mouth"  # she shows her teeth
    assert set(np.unique(labels)) == set(range(9))


def test_face_region_is_the_hull_of_the_landmarks(labels, astronaut_face):
    """Area by the shoelace formula on the hull, an independent count of the pixels."""
    marks = astronaut_face.landmarks[:468, :2]
    hull = cv2.convexHull(np.ascontiguousarray(marks))[:, 0].astype(np.float64)
    area = (
        abs(np.sum(hull[:, 0] * np.roll(hull[:, 1], 1) - hull[:, 1] * np.roll(hull[:, 0], 1))) / 2
    )
    region = segmentation.face_mask(labels)
    assert region.dtype == bool and region.sum() == pytest.approx(area, rel=0.05)
    low, high = marks.min(0), marks.max(0)
    ys, xs = np.nonzero(region)
    np.testing.assert_allclose(
        [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [*low, *high], atol=2
    )


def test_mirrored_photo_gives_the_mirrored_region(astronaut, labels):
    (face,) = find_faces(astronaut[:, ::-1])
    mirrored = segmentation.face_mask(segmentation.parse_face(face.landmarks, astronaut.shape[:2]))[
        :, ::-1
    ]
    region = segmentation.face_mask(labels)
    assert (mirrored & region).sum() / (mirrored | region).sum() > 0.96


def test_face_over_the_edge_of_the_picture(astronaut_face):
    moved = astronaut_face.landmarks - np.array([225, 128, 0])
    labels = segmentation.parse_face(moved, (64, 64))
    assert segmentation.face_mask(labels)[0, 0] and not segmentation.face_mask(labels)[60, 60]


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_person_mask(astronaut, scale):
    mask = segmentation.person_mask(
        cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    )
    side = round(512 * scale)
    assert (
        mask.shape == (side, side)
        and mask.dtype == np.float32
        and 0 <= mask.min()
        and mask.max() <= 1
    )
    at = (np.array([[128, 225], [400, 200], [60, 350], [30, 60]]) * scale).astype(int)
    np.testing.assert_array_equal(mask[at[:, 0], at[:, 1]] > 0.5, [True, True, False, False])


def test_paint_outside_white(astronaut, labels):
    region = segmentation.face_mask(labels)
    painted = segmentation.paint_outside_white(astronaut, region)
    assert painted.dtype == np.uint8 and (painted[~region] == 255).all()
    np.testing.assert_array_equal(painted[region], astronaut[region])
