"""Fits recover known heads; mirrored landmarks give the mirrored head; nothing is random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import HeadError
from caphuman_jax.head import fitting, pose, topology
from caphuman_jax.head.head import stack, unstack
from caphuman_jax.head.models.registry import load_head

SIZE = np.asarray([200, 160], np.float32)


@pytest.fixture(scope="module")
def problem(model, make_head, landmarks_of):
    """Sixteen heads within ±40° with unknown identity; noisy landmarks, depth of a wrong scale,
    wrong-ish expressions.
    """
    rng = np.random.default_rng(0)
    angles = rng.uniform([-40, -25, -20], [40, 25, 20], (16, 3))
    heads = [
        make_head(
            i,
            *angle,
            expression={"mouthSmileLeft": 0.6, "mouthSmileRight": 0.5, "jawOpen": 0.3 * (i % 2)},
        )
        for i, angle in enumerate(angles)
    ]
    points = np.stack([landmarks_of(head) for head in heads])
    points[..., :2] += rng.normal(0, 0.5, points[..., :2].shape)
    points[..., 2] = points[..., 2] * 1.15 + 20 + rng.normal(0, 2, points.shape[:2])
    given = np.clip(
        np.stack([head.expression for head in heads]) + rng.normal(0, 0.08, (16, 52)), 0, 1
    )
    return heads, angles, points.astype(np.float32), given.astype(np.float32)


@pytest.fixture(scope="module")
def fitted(model, problem):
    return fitting.fit_batch(
        model, jnp.asarray(problem[2]), jnp.asarray(problem[3]), jnp.tile(SIZE, (16, 1))
    )


def test_pose_scale_and_shape(model, problem, fitted):
    heads, angles, _, _ = problem
    error = np.abs(np.asarray(pose.angles(fitted.rotation)) - angles)
    assert np.median(error, axis=0).max() < 1.0 and error.max() < 4.0
    assert np.abs(np.asarray(fitted.scale) / 60 - 1).max() < 0.03
    assert np.abs(np.asarray(fitted.translation) - [80, 105]).max() < 3.0
    shape = jax.vmap(lambda i, e: model.vertices(i, e))
    true = stack(heads)
    face = model.face_weight > 0.5
    distance = lambda identity: np.linalg.norm(
        shape(identity, fitted.expression) - shape(true.identity, true.expression), axis=-1
    )[:, face].mean()
    assert distance(fitted.identity) < 0.6 * distance(jnp.zeros_like(fitted.identity))
    assert np.all((np.asarray(fitted.expression) >= 0) & (np.asarray(fitted.expression) <= 1))
    assert np.asarray(fitted.residual).max() < 0.03 and np.asarray(fitted.confidence).min() > 0.7


def test_hidden_part_does_not_pull(model, problem):
    _, angles, points, given = problem
    broken = points[0].copy()
    broken[
        [
            61,
            146,
            91,
            181,
            84,
            17,
            314,
            405,
            321,
            375,
            0,
            37,
            39,
            40,
            267,
            269,
            270,
            13,
            14,
            200,
            199,
            175,
        ],
        :2,
    ] += [25, 10]
    head = fitting.fit(model, jnp.asarray(broken), jnp.asarray(given[0]), jnp.asarray(SIZE))
    assert np.abs(np.asarray(head.angles) - angles[0]).max() < 5


def test_mirrored_landmarks_give_the_mirrored_pose(model, problem, make_head, landmarks_of):
    from caphuman_jax.head.camera import mirrored

    head = make_head(7, 24, -9, 6, expression={"mouthSmileLeft": 0.8})
    twin = mirrored(head, model)
    angles = []
    for one in (head, twin):
        found = fitting.fit(
            model, jnp.asarray(landmarks_of(one)), one.expression, jnp.asarray(SIZE)
        )
        angles.append(np.asarray(found.angles))
    np.testing.assert_allclose(angles[1], angles[0] * [-1, 1, -1], atol=0.6)


def test_same_input_same_bits_alone_or_in_a_batch(model, problem, fitted):
    _, _, points, given = problem
    again = fitting.fit_batch(
        model, jnp.asarray(points), jnp.asarray(given), jnp.tile(SIZE, (16, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, again, fitted)
    alone = fitting.fit(model, jnp.asarray(points[3]), jnp.asarray(given[3]), jnp.asarray(SIZE))
    np.testing.assert_allclose(alone.angles, unstack(fitted)[3].angles, atol=0.05)


def test_prior_has_unit_spread_and_no_rigid_motion(model):
    """The head's own directions hold no shift, turn or growth of the face, so pose and identity do
    not trade places.
    """
    places = model.landmark_vertices[model.landmark_valid]
    weights = model.landmark_weights[model.landmark_valid][..., None]
    mean = (model.mean[places] * weights).sum(1)
    for direction in model.identity_basis[:10]:
        moved = (direction[places] * weights).sum(1)
        size = np.abs(moved).max()
        assert np.abs(moved.mean(0)).max() < 0.3 * size
        centered = mean - mean.mean(0)
        turn = np.cross(centered, moved).mean(0) / (centered**2).sum(1).mean()
        assert np.abs(turn).max() < np.deg2rad(1.0)


def test_model_is_symmetric(model):
    mirrored = model.mean[model.mirror] * [-1, 1, 1]
    np.testing.assert_allclose(mirrored, model.mean, atol=1e-4)
    np.testing.assert_array_equal(model.mirror[model.mirror], np.arange(len(model.mean)))
    counts = np.bincount(model.parts, minlength=7)
    assert (counts > 0).all() and counts[topology.LEFT_EYE] == counts[topology.RIGHT_EYE]
    assert model.mean[model.parts == topology.LEFT_EYE, 0].min() > 0


def test_expression_in_order(model):
    names = ("_neutral", "jawOpen", "browDownLeft")
    weights = model.expression_from_arkit(names, np.asarray([[0.9, 0.5, 0.25]], np.float32))
    assert weights.shape == (1, 52) and weights.sum() == pytest.approx(0.75)
    assert weights[0, model.expression_names.index("jawOpen")] == 0.5


def test_bad_input(model):
    photo = np.zeros((40, 40, 3), np.uint8)
    points, expression = np.zeros((478, 3), np.float32), np.zeros(52, np.float32)
    with pytest.raises(HeadError, match="478"):
        fitting.head_from_photo(model, photo, points[:68], expression)
    with pytest.raises(HeadError, match="4 pixels"):
        fitting.head_from_photo(model, photo, points, expression)
    with pytest.raises(HeadError, match="finite"):
        fitting.head_from_photo(model, photo, points * np.nan, expression)
    with pytest.raises(HeadError, match="× 3"):
        fitting.head_from_photo(model, photo[..., 0], points, expression)
    with pytest.raises(HeadError, match="anny"):
        load_head("nobody")


def test_head_from_photo_of_any_size(model, make_head, landmarks_of):
    """A head rendered as a photo, at two sizes, gives back the same head, placed in each photo's
    own pixels.
    """
    import cv2

    from caphuman_jax.head.hints import render_hints

    head = make_head(4, yaw=12, pitch=5, roll=-4)
    photo = (np.asarray(render_hints(model, head, 200, 160))[..., 6:] * 255).astype(np.uint8)
    small = fitting.head_from_photo(model, photo, landmarks_of(head), head.expression)
    large = fitting.head_from_photo(
        model, cv2.resize(photo, (480, 600)), landmarks_of(head) * 3, head.expression
    )
    np.testing.assert_allclose(small.angles, [12, 5, -4], atol=1.0)
    assert float(small.scale) == pytest.approx(60, rel=0.02) and np.asarray(
        small.size
    ).tolist() == [200, 160]
    np.testing.assert_allclose(small.translation, head.translation, atol=1.5)
    np.testing.assert_allclose(large.translation / 3, small.translation, atol=0.3)
    np.testing.assert_allclose(large.scale / 3, small.scale, rtol=0.01)
