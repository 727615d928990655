"""The edit suite: what counts as changed outside the mask, and as a seam."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.evaluation import bulk, edits
from caphuman_jax.evaluation.photos import Photo
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
    assert edits.copied(asked, measured, own) == pytest.approx(1 / 3)
    assert edits.copied(asked, asked, own) == 0 and edits.copied(asked, own, own) == 1
    assert np.isnan(edits.copied(asked[2:3], measured[2:3], own[2:3]))


def test_edits_are_measured(pipe, astronaut_file, tmp_path):
    for name in ("a.png", "b.png"):
        Image.open(astronaut_file).save(tmp_path / name)
    photos = [Photo(name, tmp_path / name) for name in ("a.png", "b.png")]
    subjects = [bulk.subject_reader(pipe)(photo) for photo in photos]
    made = edits.run_edits(pipe, photos, subjects, tmp_path, changes=[{"yaw": 20}, {"yaw": -20}])
    assert (tmp_path / "edits_00.png").exists() and len(made) == 2
    asked = [edit.outcome.asked.angles[0] - edit.outcome.own.angles[0] for edit in made]
    np.testing.assert_allclose(asked, [20, -20], atol=0.5)
    results = edits.compute(pipe, subjects, made)
    assert results["edit"]["changed_outside"] == 0 and results["edit"]["edits"] == 2
