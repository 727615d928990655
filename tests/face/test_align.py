import numpy as np
import pytest

from caphuman_jax.errors import PhotoError
from caphuman_jax.face import align


def _known(angle, scale, shift):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


@pytest.mark.parametrize(
    "angle, scale, shift",
    [(0.0, 1.0, (0, 0)), (0.7, 3.0, (-4, 90)), (-3.0, 0.02, (1000, 5)), (np.pi, 1.5, (0, 1))],
)
def test_recovers_a_known_transform(angle, scale, shift):
    points = np.random.default_rng(1).normal(100, 40, (5, 2))
    known = _known(angle, scale, shift)
    np.testing.assert_allclose(
        align.similarity_transform(points, points @ known[:, :2].T + known[:, 2]), known, atol=1e-9
    )


def test_noisy_points_match_least_squares():
    rng = np.random.default_rng(2)
    for _ in range(20):
        source, target = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
        target = (
            source @ _known(rng.uniform(-3, 3), rng.uniform(0.5, 2), rng.normal(size=2))[:, :2].T
            + 0.2 * target
        )
        # x' = a x - b y + tx, y' = b x + a y + ty
        one, nil = np.ones(6), np.zeros(6)
        rows = np.concatenate(
            [
                np.stack([source[:, 0], -source[:, 1], one, nil], 1),
                np.stack([source[:, 1], source[:, 0], nil, one], 1),
            ]
        )
        a, b, tx, ty = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(
            align.similarity_transform(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-9
        )


def test_mirrored_points_give_no_reflection():
    points = np.random.default_rng(3).normal(size=(5, 2))
    assert np.linalg.det(align.similarity_transform(points, points * [-1, 1])[:, :2]) > 0


def test_points_on_one_spot_are_an_error():
    with pytest.raises(PhotoError, match="larger or sharper"):
        align.similarity_transform(
            np.full((5, 2), 3.0), np.random.default_rng(0).normal(size=(5, 2))
        )


def test_invert_and_crop_transform():
    matrix = align.crop_transform([50, 80], 40, 0.3, 256)
    axis, down = np.array([np.cos(0.3), np.sin(0.3)]), np.array([-np.sin(0.3), np.cos(0.3)])
    points = np.array([50, 80]) + np.stack([0 * axis, 20 * axis, -20 * axis + 20 * down])
    np.testing.assert_allclose(
        align.apply(matrix, points), [[128, 128], [256, 128], [0, 256]], atol=1e-9
    )
    np.testing.assert_allclose(
        align.apply(align.invert(matrix), align.apply(matrix, points)), points, atol=1e-9
    )


@pytest.mark.parametrize("side", [24, 64, 200, 640])
def test_warp_takes_the_pixels_that_the_transform_says(side):
    """On a ramp every way of resampling must give the ramp's value at the pixel's center."""
    y, x = np.mgrid[:1000, :1200] + 0.5
    ramp = np.stack([x, y, x + y], -1).astype(np.float32)
    matrix = align.crop_transform([600, 480], side, 0.4, 64)
    centers = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1).reshape(-1, 2)
    at = align.apply(align.invert(matrix), centers)
    expected = np.concatenate([at, at.sum(1, keepdims=True)], 1).reshape(64, 64, 3)
    assert np.abs(align.warp(ramp, matrix, 64) - expected).max() < 0.05 * max(side / 64, 1)


def test_warp_borders_and_far_outside():
    image = np.full((50, 50, 3), 200, np.uint8)
    for side in (60, 1000):
        matrix = align.crop_transform([0, 25], side, 0.0, 40)
        black, repeated = (
            align.warp(image, matrix, 40),
            align.warp(image, matrix, 40, border="repeat"),
        )
        assert (black[:, :19] == 0).all() and (repeated == 200).all()
    assert align.warp(image, align.crop_transform([5000, 25], 1000, 0.0, 40), 40).max() == 0


def test_shrinking_does_not_alias():
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    small = align.warp(stripes, align.crop_transform([400, 400], 800, 0.0, 80), 80)
    assert np.abs(small.astype(int) - 127.5).max() <= 20  # plain sampling gives 0 or 255
