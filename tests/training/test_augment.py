"""Warps against OpenCV, and normals that turn with the picture."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loading import augment


def transforms(scale=1.0, degrees=0.0, shift=(0.0, 0.0), mirror=False):
    return {
        "scale": jnp.asarray([scale], jnp.float32),
        "angle": jnp.deg2rad(jnp.asarray([degrees], jnp.float32)),
        "shift": jnp.asarray([shift], jnp.float32),
        "mirror": jnp.asarray([mirror]),
    }


def test_warp_is_opencvs_affine_warp():
    picture = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 2)
    scale, degrees, shift, size = 1.2, 17.0, (0.1, -0.05), 40
    coordinates = augment.source_coordinates(transforms(scale, degrees, shift), 60, size)
    ours = np.asarray(augment.warp(jnp.asarray(picture)[None], coordinates))[0]
    # OpenCV turns counter-clockwise for positive angles; ours is clockwise as seen.
    matrix = cv2.getRotationMatrix2D((29.5, 29.5), -degrees, scale)
    matrix[:, 2] += (size - 60) / 2 + np.array(shift) * size
    theirs = cv2.warpAffine(
        picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    assert np.abs(ours - theirs).max() < 4  # OpenCV works in 1/32 pixels and rounds to integers


def test_mirror_swaps_left_and_right():
    picture = np.random.default_rng(1).integers(0, 255, (1, 32, 32, 3), np.uint8)
    ours = augment.warp(
        jnp.asarray(picture), augment.source_coordinates(transforms(mirror=True), 32, 32)
    )
    np.testing.assert_allclose(np.asarray(ours), picture[:, :, ::-1], atol=1e-3)


def test_normals_turn_with_the_picture():
    # The upper edge's outward normal points up; after a quarter turn clockwise that edge is at the
    # right.
    normal = jnp.asarray([0.0, 1.0, 0.0], jnp.float32).reshape(1, 1, 1, 3)
    turned = np.asarray(augment.turn_normals(normal, transforms(degrees=90.0)))[0, 0, 0]
    np.testing.assert_allclose(turned, [1, 0, 0], atol=1e-6)
    picture = np.zeros((1, 21, 21, 1), np.uint8)
    picture[0, :4] = 255
    moved = np.asarray(
        augment.warp(
            jnp.asarray(picture), augment.source_coordinates(transforms(degrees=90.0), 21, 21)
        )
    )[0, ..., 0]
    assert moved[:, -3:].min() > 250 and moved[:, :10].max() < 5


def test_area_outside_the_photo_is_not_valid():
    """Pixels 10 … 49 of 64 are photo: the area's edges lie at 10 and 50."""
    rectangle = jnp.asarray([[10.0, 0.0, 50.0, 64.0]], jnp.float32)
    area = np.asarray(
        augment.valid_area(augment.source_coordinates(transforms(), 64, 64), rectangle)
    )[0, ..., 0]
    assert area[:, :10].max() == 0 and area[:, 10:50].min() == 1 and area[:, 50:].max() == 0
    shrunk = np.asarray(
        augment.valid_area(augment.source_coordinates(transforms(), 64, 32), rectangle)
    )[0, ..., 0]
    assert shrunk.sum() == 32 * 32 and area.sum() == 40 * 64


def test_transforms_depend_on_the_key_alone_and_stay_in_range():
    cfg = augment.AugmentConfig()
    a, b = (augment.sample_transforms(jax.random.key(3), 500, cfg) for _ in range(2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert np.abs(np.log(a["scale"])).max() <= np.log(cfg.scale) + 1e-6
    assert np.abs(np.rad2deg(a["angle"])).max() <= cfg.roll_limit + 1e-3
    assert np.abs(a["shift"]).max() <= cfg.shift and 0.4 < np.mean(a["mirror"]) < 0.6


def test_a_white_shirt_stays_white_under_a_dark_suit_if_asked_for():
    suit, shirt = 0.2, 0.85
    picture = np.full((1, 8, 8, 3), suit, np.float32)
    picture[:, 2:4] = 0.28  # a fold
    picture[:, 4:] = shirt
    mask = np.ones((1, 8, 8, 1), np.float32)
    mask[:, :, 6:] = 0
    color = np.array([[0.8, 0.1, 0.1]], np.float32)
    dress = lambda brightness, stays: np.asarray(
        augment.recolor(
            jnp.asarray(picture),
            jnp.asarray(mask),
            jnp.asarray(color),
            jnp.array([brightness], jnp.float32),
            jnp.array([stays]),
        )
    )[0]
    kept, all_new = dress(suit, True), dress(suit, False)
    for made in (kept, all_new):
        np.testing.assert_allclose(made[:2, :6], np.broadcast_to(color, (2, 6, 3)), atol=1e-6)
        assert (made[2:4, :6, 0] > 3 * made[2:4, :6, 1]).all()
        np.testing.assert_array_equal(made[:, 6:], picture[0, :, 6:])
    np.testing.assert_allclose(kept[4:, :6], shirt, atol=1e-6)
    assert (all_new[4:, :6, 0] > 3 * all_new[4:, :6, 1]).all()
    # Of white clothes, nothing is a shirt.
    np.testing.assert_allclose(
        dress(shirt, True)[4:, :6], np.broadcast_to(color, (4, 6, 3)), atol=1e-6
    )
