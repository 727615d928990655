"""A photo with its head changed: nothing outside the mask changes, whatever the photo is."""

import base64
import dataclasses
import io
import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.errors import NoFaceError, PhotoError, SettingError
from caphuman_jax.head import editing
from caphuman_jax.io import metadata
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.pipeline import edit_mask, rough_edit
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.paste import paste

HEAD = {"yaw": 10, "expression": "smile=0.8", "light": "left"}


def touched(result, image=0):
    """(H, W) float32 in [0, 1]: the recorded mask at the photo's size, enlarged by a pixel."""
    record, photo = result.settings["edit"], result.canvas.photo
    area = Image.open(io.BytesIO(base64.b64decode(record["area"])))
    (scale, _, x), (_, _, y) = record["place"]
    corners = (-x / scale, -y / scale, (area.width - x) / scale, (area.height - y) / scale)
    region = np.zeros(photo.shape[:2], bool)
    rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]] + 0.5
    u = (columns - corners[0]) * scale
    v = (rows - corners[1]) * scale
    inside = (u > 0) & (v > 0) & (u < area.width) & (v < area.height)
    values = np.asarray(area) > 0
    grown = np.pad(values, 2)
    near = np.zeros_like(values)
    for dy in range(5):
        for dx in range(5):
            near |= grown[dy : dy + values.shape[0], dx : dx + values.shape[1]]
    region[inside] = near[v[inside].astype(int), u[inside].astype(int)]
    return region


def changed(result, photo, image=0):
    return (result.images[image] != photo).any(axis=-1)


def test_only_what_the_mask_covers_changes(pipe, astronaut, tmp_path):
    result = pipe.edit(astronaut, head=HEAD, seed=3, num_images=2)
    assert result.images.shape == (2, *astronaut.shape)
    for image in range(2):
        differs = changed(result, astronaut, image)
        assert 0.05 < differs.mean() < 0.6 and not (differs & ~touched(result)).any()
    assert (result.images[0] != result.images[1]).any()
    again = pipe.edit(astronaut, head=HEAD, seed=3, first_image=1)
    np.testing.assert_array_equal(again.images[0], result.images[1])

    (first, _) = result.save(tmp_path)
    entries = Image.open(first).text
    assert metadata.EDITED_SOURCE in entries["XML:com.adobe.xmp"]
    assert metadata.DIGITAL_SOURCE not in entries["XML:com.adobe.xmp"]
    edit = metadata.read_settings(first)["edit"]
    assert edit["mask"] == "auto" and len(edit["photo"]["sha256"]) == 64
    assert edit["photo"]["sha256"] in entries["parameters"]


def test_masks_and_denoise_share_one_program(pipe, astronaut):
    pipe.edit(astronaut, head={"yaw": 5})
    before = len(pipe.programs._compiled)
    results = [
        pipe.edit(astronaut, head={"yaw": 5}, mask=mask, denoise=denoise)
        for mask, denoise in (("face", 0.5), ("head", 1.0), ("auto", 0.7))
    ]
    assert len(pipe.programs._compiled) == before
    areas = [changed(result, astronaut).mean() for result in results]
    assert areas[0] <= areas[1]


def test_one_face_of_several(pipe, two_faces):
    """The small face on the left; the large one stays."""
    result = pipe.edit(two_faces, face=1, head={"yaw": 10})
    differs = changed(result, two_faces)
    assert differs[:, :256].any() and not differs[:, 256:].any()


def test_another_person(pipe, person, astronaut, two_faces):
    other = dataclasses.replace(person, name="other.png", sha256="0" * 64, vectors=-person.vectors)
    own = pipe.edit(two_faces, face=0, denoise=0.8, mask="face")
    swapped = pipe.edit(two_faces, face=0, reference=other, mask="face")
    assert swapped.settings["denoise"] == 0.8
    assert swapped.settings["people"][0]["reference"]["name"] == "other.png"
    assert (own.images != swapped.images).any()
    np.testing.assert_allclose(swapped.head.angles, own.head.angles, atol=0.2)


def test_painted_masks(pipe, astronaut):
    mask = np.zeros(astronaut.shape[:2], np.uint8)
    mask[300:420, 60:240] = 255
    for person in (True, False):
        result = pipe.edit(astronaut, mask=mask, person=person, prompt="a dog")
        differs = changed(result, astronaut)
        assert differs.any() and not (differs & (mask == 0)).any()
    assert result.settings["people"] == [] and not result.subjects
    with pytest.raises(PhotoError, match="is 256x512 pixels, the array 512x512"):
        pipe.edit(astronaut, mask=mask[:, :256])
    strokes = np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask])  # white on nothing
    for drawn in (strokes, Image.fromarray(strokes)):
        with pytest.raises(PhotoError, match="has transparent parts"):
            pipe.edit(astronaut, mask=drawn)
    with pytest.raises(PhotoError, match="covers nothing"):
        pipe.edit(astronaut, mask=np.zeros_like(mask))


def test_the_whole_photo(pipe, astronaut):
    wide = np.concatenate([astronaut[:, ::-1], astronaut], axis=1)[:, :700]
    result = pipe.edit(wide, mask="whole", person=False, denoise=0.6, prompt="a dog")
    assert result.images[0].shape == wide.shape and changed(result, wide).mean() > 0.9
    width, height = result.settings["size"]
    assert width > height


def test_photos_of_any_kind(pipe, astronaut, tmp_path):
    """Turned by EXIF, 16 bits, and transparency; then a panorama."""
    turned = Image.fromarray(np.rot90(astronaut))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    deep = astronaut.astype(np.uint16) * 257
    clear = np.concatenate([astronaut, np.full((512, 512, 1), 255, np.uint8)], axis=-1)
    clear[:50, :50, 3] = 0
    panorama = np.full((600, 12_000, 3), 90, np.uint8)
    panorama[40:552, 7000:7512] = astronaut
    for photo, upright in (
        (tmp_path / "turned.png", astronaut),
        (deep, astronaut),
        (clear, None),
    ):
        result = pipe.edit(photo, head={"yaw": 8}, steps=2)
        upright = result.canvas.photo if upright is None else upright
        differs = changed(result, upright)
        assert differs.any() and not (differs & ~touched(result)).any()
    result = pipe.edit(panorama, head={"yaw": 8}, steps=2)  # a small face in a wide photo
    differs = changed(result, panorama)
    assert differs[40:552, 7000:7512].any() and not (differs & ~touched(result)).any()
    mask = np.zeros(panorama.shape[:2], np.uint8)
    mask[200:400, 7100:7400] = 255
    result = pipe.edit(panorama, mask=mask, person=False, steps=2)
    differs = changed(result, panorama)
    assert differs.any() and not (differs & (mask == 0)).any()


def test_a_face_at_the_border(pipe, astronaut):
    cut = astronaut[60:300, 150:300]
    for photo in (cut, np.ascontiguousarray(astronaut[::8, ::8])):  # and a tiny photo
        result = pipe.edit(photo, head={"yaw": 8})
        assert result.images[0].shape == photo.shape and changed(result, photo).any()


@pytest.mark.parametrize(
    ("asked", "problem", "message"),
    [
        ({"photo": np.full((64, 64, 3), 128, np.uint8)}, NoFaceError, "no face found"),
        ({"face": 4}, PhotoError, "there is no face 4"),
        ({"mask": "hat"}, PhotoError, "hat does not exist"),
        ({"person": False}, SettingError, "take whole or a mask picture"),
        ({"denoise": 0.02}, SettingError, "leaves no step"),
        ({"denoise": 2}, SettingError, "denoise must lie between"),
        ({"people": [{}]}, SettingError, "one face"),
    ],
)
def test_what_cannot_be_edited(pipe, astronaut, asked, problem, message):
    with pytest.raises(problem, match=message):
        pipe.edit(**{"photo": astronaut, **asked})


def test_denoise_is_for_photos(pipe, person):
    with pytest.raises(SettingError, match="photo that is edited"):
        pipe.request(reference=person, prompt="x", denoise=0.5)


def test_motion_of_a_shifted_head(pipe, person):
    """A head that is shifted by whole pixels takes its pixels along; what is far away stays."""
    size = len(person.square)
    shifted = dataclasses.replace(
        person.head, translation=person.head.translation + np.float32([3, 0])
    )
    still = rough_edit.motion(pipe.head_model, person.head, person.head, person.square)
    assert np.abs(still.flow).max() < 1e-4 and not still.touched.any()
    np.testing.assert_array_equal(np.rint(still.apply(person.square)), person.square)
    motion = rough_edit.motion(pipe.head_model, person.head, shifted, person.square)
    nose = np.round(person.landmarks[4, :2]).astype(int)
    np.testing.assert_allclose(motion.flow[nose[1], nose[0] + 3], [-3, 0], atol=0.05)
    moved = motion.apply(person.square)
    around = np.s_[nose[1] - 3 : nose[1] + 4]
    np.testing.assert_allclose(
        moved[around, nose[0] : nose[0] + 7],
        person.square[around, nose[0] - 3 : nose[0] + 4],
        atol=3,
    )
    assert np.abs(motion.flow[-1]).max() < 0.5 and size == len(moved)


def test_a_turned_head_folds_nothing(pipe, person):
    """Neighbors come from neighbors in the same order, at silhouettes too."""
    turned = editing.from_numbers(
        pipe.head_model, person.head, yaw=float(person.head.angles[0]) + 15
    )
    flow = rough_edit.motion(pipe.head_model, person.head, turned, person.square).flow
    assert np.abs(flow).max() > 0.03 * len(person.square)
    assert np.diff(flow[..., 0], axis=1).min() > -1 and np.diff(flow[..., 1], axis=0).min() > -1


def test_pasting_matches_colors_and_keeps_what_the_model_made_alike():
    """A canvas that is the photo, a constant brighter, leaves no trace at the mask's edge."""
    rng = np.random.default_rng(0)
    photo = np.repeat(rng.integers(80, 150, (96, 96, 1)), 3, axis=-1).astype(np.uint8)
    place = np.array([[1.0, 0, -16], [0, 1.0, -16]])
    image, covered = photo[16:80, 16:80], np.zeros((64, 64), bool)
    covered[20:44, 20:44] = True
    mask = edit_mask.feathered(covered, 2, 6)
    canvas = Canvas(photo, place, image, mask)
    result = paste(canvas, np.clip(image.astype(int) + 20, 0, 255).astype(np.uint8))
    outside = np.ones((96, 96), bool)
    outside[16:80, 16:80] = mask == 0
    np.testing.assert_array_equal(result[outside], photo[outside])
    edge = np.zeros((96, 96), bool)
    edge[16:80, 16:80] = (mask > 0) & (mask < 0.9)
    change = result.astype(int)[edge] - photo[edge]
    assert abs(change.mean()) < 5 < 20


def test_what_the_autoencoder_loses_stays():
    """Where sampling gives back what the autoencoder makes of the photo, the photo's own pixels
    stay, at four times the canvas' resolution; where it makes something else, that is shown.
    """
    rng = np.random.default_rng(0)
    photo = rng.integers(60, 200, (256, 256, 3)).astype(np.uint8)
    place = np.array([[0.25, 0, 0], [0, 0.25, 0]])
    reconstruction = np.full((64, 64, 3), 120.0, np.float32)  # it loses everything
    canvas = Canvas(
        photo,
        place,
        cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA),
        np.ones((64, 64), np.float32),
        reconstruction=reconstruction,
    )
    made = reconstruction.astype(np.uint8)
    np.testing.assert_array_equal(paste(canvas, made), photo)
    made[20:44, 20:44] = (250, 20, 20)
    result = paste(canvas, made)
    np.testing.assert_array_equal(result[:40], photo[:40])
    assert np.abs(result[112:144, 112:144].astype(int) - (250, 20, 20)).max() < 40
    assert result[112:144, 112:144].std(axis=(0, 1)).max() < 10


def test_auto_makes_again_what_the_photo_does_not_show(pipe, astronaut):
    """Nothing where the head only turns a little, the mouth that opens, or the whole face where
    words ask for another one.
    """
    masks = {
        name: pipe.condition(
            pipe.request(edit={"photo": astronaut}, **asked), with_hints=False
        ).canvas.mask
        for name, asked in {
            "turned": {"head": {"yaw": 5}},
            "opened": {"head": {"expression": "mouth-open"}},
            "by words": {"prompt": "a photo of a person with a beard"},
        }.items()
    }
    covered = {name: (mask > 0.5).mean() for name, mask in masks.items()}
    assert covered["turned"] < 0.01 < covered["opened"] < covered["by words"]
    assert masks["opened"][: len(masks["opened"]) // 5].max() == 0  # not the forehead


def test_command_and_repeating_it(tiny_folder, astronaut_file, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    base = ["edit", "--model", str(tiny_folder), "--photo", str(astronaut_file)]
    assert app.main([*base, "--out", str(out), "--yaw", "10", "--light", "left"]) == 0
    assert app.main([*base, "--out", str(again), "--repeat", str(out / "picture_00.png")]) == 0
    first, second = (np.asarray(Image.open(f / "picture_00.png")) for f in (out, again))
    np.testing.assert_array_equal(first, second)
    assert (out / "sheet.png").exists()
    capsys.readouterr()
    for more, message in (
        ([], "nothing to change"),
        (["--no-person", "--yaw", "3", "--mask", "whole"], "takes neither a head"),
        (["--repeat", str(out / "picture_00.png"), "--yaw", "3"], "leave out --yaw"),
    ):
        assert app.main([*base, *more]) == 2
        assert message in capsys.readouterr().err
    generate = ["generate", "--model", str(tiny_folder), "--reference", str(astronaut_file)]
    assert app.main([*generate, "--repeat", str(out / "picture_00.png")]) == 2
    assert "caphuman edit --repeat" in capsys.readouterr().err


def test_jobs(pipe, astronaut_file, astronaut):
    """A job's request is what Python's is, and wrong fields are named."""
    check = Checker(pipe.config)
    folder = astronaut_file.parent
    fields = {"edit": {"photo": astronaut_file.name}, "head": {"yaw": 10}, "seed": 4}
    wrong, request = check(fields, folder)
    assert not wrong and request.params.denoise == 0.5
    conditioning = pipe.condition(request)
    images, _ = pipe.make([(conditioning, 0)])
    made = conditioning.finish(np.rint(np.asarray(images[0]) * 255).astype(np.uint8))
    expected = pipe.edit(str(astronaut_file), head={"yaw": 10}, seed=4)
    assert np.abs(made.astype(int) - expected.images[0]).max() <= 1
    json.dumps(conditioning.settings)
    for fields, message in (
        ({"edit": "me.jpg"}, "edit: must be an object"),
        ({"edit": {"photo": "none.jpg"}}, "edit.photo: .* does not exist"),
        ({"edit": {"photo": astronaut_file.name, "face": -1}}, "edit: face must"),
        ({"denoise": 0.5, "prompt": "x", "reference": astronaut_file.name}, "denoise: is for"),
    ):
        wrong, _ = check(fields, folder)
        assert wrong and re.search(message, " ".join(wrong)), wrong


def test_light_neither_burns_out_nor_changes_where_it_is_one():
    """Twice the light doubles dark colors, and keeps bright ones apart and below white."""
    image = np.repeat(np.linspace(0, 255, 64, dtype=np.float32)[None, :, None], 3, axis=-1)
    same, dark, bright = (
        rough_edit.Motion(*(np.zeros((1, 64, n), np.float32) for n in (2, 2, 1, 1)), light).apply(
            image
        )
        for light in (np.full((1, 64, 3), value, np.float32) for value in (1.0, 0.5, 2.0))
    )
    np.testing.assert_array_equal(same, image)
    np.testing.assert_allclose(dark, image / 2)
    assert (np.diff(bright[0, :, 0]) > 0).all() and bright.max() <= 255
    np.testing.assert_allclose(bright[0, 1] / image[0, 1], 2, atol=0.05)


def test_light_reaches_the_head_where_segmentation_finds_nobody(pipe, person, monkeypatch):
    monkeypatch.setattr(
        rough_edit, "person_mask", lambda image: np.zeros(image.shape[:2], np.float32)
    )
    lit = editing.from_numbers(pipe.head_model, person.head, light="left")
    motion = rough_edit.motion(pipe.head_model, person.head, lit, person.square)
    nose = np.round(person.landmarks[4, :2]).astype(int)
    around = motion.light[nose[1], nose[0] - 8 : nose[0] + 9, 0]
    assert around.max() - around.min() > 0.1 and (motion.light[0] == 1).all()
