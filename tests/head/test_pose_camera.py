"""Signs of angles, and what a crop, resize, turn or mirror of the picture does to a head."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from caphuman_jax.head import camera, pose
from caphuman_jax.head.spherical_harmonics import shading

NOSE = jnp.asarray([[0.0, 0.0, 1.0]], jnp.float32)
CROWN = jnp.asarray([[0.0, 1.0, 0.0]], jnp.float32)


def pixel(point, **turn):
    rotation = pose.rotation_matrix(*(turn.get(name, 0.0) for name in ("yaw", "pitch", "roll")))
    return np.asarray(
        camera.project(point, rotation, jnp.float32(10), jnp.asarray([50.0, 50.0], jnp.float32))
    )[0]


def test_signs_as_the_viewer_sees_them():
    assert (
        pixel(NOSE, yaw=20)[0] > 52 and abs(pixel(NOSE, yaw=20)[1] - 50) < 1e-4
    )  # nose moves right
    assert (
        pixel(NOSE, pitch=20)[1] < 48 and abs(pixel(NOSE, pitch=20)[0] - 50) < 1e-4
    )  # nose moves up: y is down
    assert pixel(CROWN, roll=20)[0] > 52  # the crown moves right: clockwise
    assert pixel(NOSE)[2] < pixel(-NOSE)[2]  # nearer is smaller


@settings(max_examples=25, deadline=None)
@given(st.floats(-85, 85), st.floats(-80, 80), st.floats(-170, 170))
def test_angles_are_the_inverse_and_match_scipy(yaw, pitch, roll):
    rotation = np.asarray(pose.rotation_matrix(yaw, pitch, roll))
    np.testing.assert_allclose(
        rotation,
        Rotation.from_euler("ZYX", [-roll, yaw, -pitch], degrees=True).as_matrix(),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        np.asarray(pose.angles(jnp.asarray(rotation))), [yaw, pitch, roll], atol=0.02
    )


def test_rotation_of_numbers_is_rotation_matrix_to_the_bit():
    drawn = np.random.default_rng(0).uniform(-90, 90, (40, 3))
    for numbers in (*drawn.tolist(), (0, 0, 0), (15, -6, 3), (90, 60, 180)):
        expected = np.asarray(pose.rotation_matrix(*numbers))
        np.testing.assert_array_equal(pose.rotation_of_numbers(*numbers), expected)


def test_from_vector_matches_scipy():
    for vector in ([0.3, -0.7, 0.2], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]):
        np.testing.assert_allclose(
            np.asarray(pose.from_vector(jnp.asarray(vector, jnp.float32))),
            Rotation.from_rotvec(vector).as_matrix(),
            atol=1e-6,
        )


def similarity(
    scale: float = 1.0,
    degrees: float = 0.0,
    shift=(0.0, 0.0),
    about=(0.0, 0.0),
    mirror_width: float | None = None,
):
    """Matrix (2,3) of a change of picture: old pixel → new pixel.

    First, if `mirror_width` is given, mirrored left-right in a picture of that width; then turned
    clockwise by `degrees` about the point `about` and scaled about the same; then moved by `shift`.
    """
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    about = jnp.asarray(about, jnp.float32)
    offset = about - turn @ about + jnp.asarray(shift, jnp.float32)
    if mirror_width is not None:
        offset = offset + turn @ jnp.asarray([mirror_width, 0.0], jnp.float32)
        turn = turn * jnp.asarray([[-1.0, 1.0]], jnp.float32)
    return jnp.concatenate([turn, offset[:, None]], axis=1)


@pytest.mark.parametrize(
    "change",
    [
        dict(scale=1.7),
        dict(degrees=25.0, about=(80.0, 100.0)),
        dict(shift=(12.0, -7.0)),
        dict(mirror_width=160.0),
        dict(mirror_width=160.0, degrees=-10.0, scale=0.5, shift=(3.0, 4.0)),
    ],
)
def test_head_follows_the_picture(model, make_head, landmarks_of, change):
    head = make_head(
        3,
        yaw=20,
        pitch=-8,
        roll=5,
        expression={"mouthSmileLeft": 0.7, "jawLeft": 0.5},
        light=np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32),
    )
    matrix = similarity(**change)
    moved = camera.transform_head(head, model, matrix, 200, 160)
    points = lambda h: camera.project(
        model.vertices(h.identity, h.expression), h.rotation, h.scale, h.translation
    )
    expected = np.asarray(camera.transform_points(matrix, points(head)[:, :2]))
    found = np.asarray(points(moved))[:, :2]
    if "mirror_width" in change:
        expected = expected[model.mirror]
    face = model.face_weight > 0.5
    # A mirrored identity is a least-squares one, and left and right expressions are drawn by hand:
    # half a pixel of 60.
    assert np.linalg.norm(found - expected, axis=1)[face].max() < (
        0.6 if "mirror_width" in change else 0.02
    )
    turn = np.asarray(matrix)[:, :2] / np.sqrt(abs(np.linalg.det(np.asarray(matrix)[:, :2])))
    normal = np.asarray([[0.6, 0.48, 0.64]], np.float32)
    seen = normal.copy()
    seen[:, :2] = (normal[:, :2] * [1, -1]) @ turn.T * [1, -1]
    np.testing.assert_allclose(
        shading(jnp.asarray(seen), moved.light), shading(jnp.asarray(normal), head.light), atol=1e-4
    )


def test_mirror_twice_is_the_same(model, make_head):
    head = make_head(1, yaw=15, expression={"jawRight": 0.4, "eyeBlinkLeft": 1.0})
    once = camera.mirrored(head, model)
    assert np.asarray(once.angles)[0] == pytest.approx(-15, abs=1e-3)
    assert np.asarray(once.expression)[model.expression_names.index("eyeBlinkRight")] == 1
    twice = camera.mirrored(once, model)
    for field in dataclasses.fields(head):
        np.testing.assert_allclose(
            getattr(twice, field.name), getattr(head, field.name), atol=0.02, err_msg=field.name
        )
