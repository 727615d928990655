"""The edit suite: what counts as changed outside the mask, and as a seam."""

import dataclasses

import numpy as np
import pytest

from caphuman_jax.evaluation import edits
from caphuman_jax.evaluation.metrics.edited_photos import copied
from caphuman_jax.pipeline import edit_mask
from caphuman_jax.pipeline.canvas import Canvas


@pytest.fixture
def canvas():
    """Noise with a round mask in its middle."""
    photo = np.random.default_rng(0).integers(90, 110, (64, 64, 1)).astype(np.uint8)
    photo = np.repeat(photo, 3, axis=-1)
    rows, columns = np.mgrid[:64, :64] - 32
    mask = edit_mask.feathered(np.hypot(rows, columns) < 14, 1, 4)
    return Canvas(photo, np.array([[1.0, 0, 0], [0, 1.0, 0]]), photo, mask)


def test_a_seam_is_one_where_nothing_changes_and_more_where_an_edge_appears(canvas):
    assert edits.seam(canvas, canvas.photo) == pytest.approx(1)
    brighter = canvas.photo.copy()
    brighter[canvas.mask > 0.5] += 60
    assert edits.seam(canvas, brighter) > 1.3
    nothing = dataclasses.replace(canvas, mask=np.zeros_like(canvas.mask))
    assert np.isnan(edits.seam(nothing, brighter))


def test_what_the_mask_reaches(canvas):
    reached = edits.reaches(canvas)
    assert reached[canvas.mask > 0].all() and not reached[0].any()
    painted = canvas.photo[..., 0] > 100
    painted = dataclasses.replace(canvas, photo_mask=painted.astype(np.float32))
    np.testing.assert_array_equal(edits.reaches(painted), canvas.photo[..., 0] > 100)


def test_copied_expressions():
    """A third of the way back to the photo's own; small changes and lost faces do not count."""
    own, asked = np.array([0.1, 0.7, 0.5, 0.9]), np.array([0.7, 0.1, 0.6, 0.0])
    measured = np.array([0.5, 0.3, 0.0, np.nan])
    assert copied(asked, measured, own) == pytest.approx(1 / 3)
    assert copied(asked, asked, own) == 0 and copied(asked, own, own) == 1
    assert np.isnan(copied(asked[2:3], measured[2:3], own[2:3]))
