"""Small faces sampled again: where they are, what changes, and that the rest stays."""

import json

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.errors import SettingError
from caphuman_jax.io import metadata
from caphuman_jax.pipeline import small_faces
from caphuman_jax.pipeline.image_batches import to_bytes

SMALL, LARGE = (0.3, 0.5, 0.2), (0.7, 0.5, 0.5)  # 13 and 32 of 64 pixels


@pytest.fixture
def asked(person):
    """Two people, the first with a small face."""
    people = [
        {"reference": person, "head": {"position": SMALL, "yaw": 15}},
        {"reference": person, "head": {"position": LARGE}},
    ]
    return {"people": people, "prompt": "two people", "size": (128, 64)}


def pixels(head, model):
    """A head's landmarks by its own numbers: rotation, scale, translation; y points down."""
    vertices = model.mean + np.tensordot(head.identity, model.identity_basis, 1)
    corners = vertices[model.landmark_vertices[[33, 263, 4, 152]]]
    weights = np.asarray(model.landmark_weights[[33, 263, 4, 152]])
    points = (corners * weights[..., None]).sum(1) @ np.asarray(head.rotation).T
    return np.float64(head.scale) * points[:, :2] * [1, -1] + np.asarray(head.translation)


def test_the_head_moves_into_the_crop_exactly(pipe, asked):
    conditioning = pipe.condition(pipe.request(**asked, detail=0.5))
    image = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    (face,) = small_faces.enlarged_faces(conditioning, image, pipe.head_model, pipe.config)
    (shown,), place = face.subjects, face.canvas.place
    before = pixels(conditioning.subjects[0].head, pipe.head_model)
    after = pixels(shown.head, pipe.head_model)
    np.testing.assert_allclose(before @ place[:, :2].T + place[:, 2], after, atol=1e-3)
    np.testing.assert_allclose(shown.head.angles, conditioning.subjects[0].head.angles, atol=1e-3)
    # The face fills the crop as a reference fills its square, and the crop shows what is there.
    assert 0.3 < np.ptp(after[:, 1]) / 64 < 0.6 and place[0, 0] > 2
    x, y = np.round(after[2]).astype(int)
    there = np.floor(before[2]).astype(int)
    near = image[there[1] - 1 : there[1] + 2, there[0] - 1 : there[0] + 2]
    assert (face.canvas.image[y, x] >= near.min((0, 1))).all()
    assert (face.canvas.image[y, x] <= near.max((0, 1))).all()
    params = face.request.params
    assert (
        params.size == (64, 64) and params.denoise == 0.5 and face.prompts == conditioning.prompts
    )


def test_only_small_faces_change_and_all_are_one_batch(pipe, asked, monkeypatch):
    plain = pipe(**asked, num_images=2)
    batches, make = [], pipe.make
    monkeypatch.setattr(pipe, "make", lambda rows, _: batches.append(rows) or make(rows))
    detailed = pipe(**asked, num_images=2, detail=0.5)
    changed = (plain.images != detailed.images).any(-1)
    for one in changed:
        assert one[:, :64].any() and not one[:, 80:].any()
    assert [len(rows) for rows in batches] == [2, 2]  # one picture at a time, room for two faces
    assert detailed.settings["detail"] == 0.5
    first = pipe(**asked, first_image=1, detail=0.5)
    np.testing.assert_array_equal(first.images[0], detailed.images[1])
    monkeypatch.undo()
    large = {**asked["people"][1], "head": {"position": (0.5, 0.5, 0.5)}}
    one = {"people": [large], "prompt": "x"}
    before = len(pipe.programs._compiled), pipe(**one).images
    again = pipe(**one, detail=0.5).images
    np.testing.assert_array_equal(again, before[1])
    assert len(pipe.programs._compiled) <= before[0] + 1  # of the picture itself


def test_the_pasted_part_is_where_capface_sees_the_face(pipe, asked):
    """With a mask that is 0 nothing is pasted; a gray crop shows through a mask that is not."""
    conditioning = pipe.condition(pipe.request(**asked, detail=0.5))
    image = np.full((1, 64, 128, 3), 0.25, np.float32)
    for value in (0.0, 1.0):
        mask = np.zeros((1, 1, 16, 16), np.float32)
        mask[..., 6:10, 6:10] = value
        made = lambda rows, mask=mask: (
            np.full((len(rows), 64, 64, 3), 0.75, np.float32),
            np.repeat(mask, len(rows), 0),
        )
        result = small_faces.detailed(
            [(conditioning, 0)], image, pipe.head_model, pipe.config, lambda one: one, made
        )
        changed = (to_bytes(result) != to_bytes(image)).any(-1)[0]
        head = conditioning.subjects[0].head
        if value:
            rows, columns = np.nonzero(changed)
            assert abs(columns.mean() - SMALL[0] * 128) < 4 and 2 < np.ptp(rows) < 20
            assert float(head.scale) > 0
        else:
            assert not changed.any()


def test_faces_that_are_not_finite_are_reported(pipe, asked):
    conditioning = pipe.condition(pipe.request(**asked, detail=0.5))
    images = np.full((1, 64, 128, 3), 0.25, np.float32)
    made = lambda rows: (
        np.full((len(rows), 64, 64, 3), np.nan, np.float32),
        np.ones((len(rows), 1, 16, 16), np.float32),
    )
    run = lambda images: small_faces.detailed(
        [(conditioning, 0)], images, pipe.head_model, pipe.config, lambda one: one, made
    )
    assert np.isnan(run(images)).all()
    assert np.isnan(run(np.full_like(images, np.nan))).all()


def test_edits(pipe, astronaut):
    """A small face of a photo that is made again as a whole."""
    wide = np.full((512, 1024, 3), 128, np.uint8)
    wide[200:456, 300:556] = astronaut[::2, ::2]
    asked = {"photo": wide, "mask": "whole", "denoise": 0.5, "size": 64}
    plain, detailed = (pipe.edit(**asked, detail=detail).images[0] for detail in (0, 0.5))
    changed = (plain != detailed).any(-1)
    assert changed[200:456, 300:556].any() and not changed[:, 700:].any()


def test_command_jobs_and_repeating(tiny_folder, astronaut_file, tmp_path):
    base = ["generate", "--model", str(tiny_folder)]
    who = ["--person", f"ref={astronaut_file},position=0.5/0.5/0.25"]
    first, again, jobs = (tmp_path / name for name in ("first", "again", "jobs"))
    assert app.main([*base, *who, "--prompt", "x", "--detail", "0.5", "--out", str(first)]) == 0
    picture = first / "picture_00.png"
    assert metadata.read_settings(picture)["detail"] == 0.5
    repeat = ["--repeat", str(picture), "--out", str(again)]
    assert app.main([*base, *who, *repeat]) == 0
    head = {"position": [0.5, 0.5, 0.25]}
    job = {"reference": str(astronaut_file), "prompt": "x", "head": head, "detail": 0.5, "id": "a"}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    sample = ["sample", "--model", str(tiny_folder), "--jobs", str(tmp_path / "jobs.jsonl")]
    assert app.main([*sample, "--out", str(jobs)]) == 0
    (made,) = jobs.rglob("a*.png")
    pictures = [np.asarray(Image.open(p)) for p in (picture, again / "picture_00.png", made)]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0].astype(int) - pictures[2]).max() <= 1


@pytest.mark.parametrize(("steps", "share", "left"), [(2, 0.1, 1), (49, 0.02, 1), (20, 0.45, 9)])
def test_at_least_one_step_is_made(pipe, asked, steps, share, left):
    conditioning = pipe.condition(pipe.request(**asked, steps=steps, detail=share))
    image = np.zeros((64, 128, 3), np.uint8)
    (face,) = small_faces.enlarged_faces(conditioning, image, pipe.head_model, pipe.config)
    assert steps - face.request.params.first_step(pipe.config) == left


def test_a_wrong_share(pipe, person):
    with pytest.raises(SettingError, match="detail must lie between 0 and 1, not 2"):
        pipe.request(reference=person, prompt="x", detail=2)
