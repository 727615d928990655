"""People with words and places of their own: whose part of a picture is where, and what it sees."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.cli import repeat as repeat_module
from caphuman_jax.diffusion.regions import RegionWeights
from caphuman_jax.errors import PhotoError, SettingError
from caphuman_jax.io import metadata
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.pipeline import regions, small_faces
from caphuman_jax.pipeline.request import SubjectRequest

HEAD = {"position": (0.5, 0.5, 0.5)}


@pytest.fixture
def heads(pipe, person):
    """A near and a far head, the far one first."""
    scaled = lambda factor: dataclasses.replace(person.head, scale=person.head.scale * factor)
    return [scaled(0.4), scaled(0.8)]


def test_the_whole_picture_as_a_region_is_a_picture_with_that_prompt(pipe, person):
    one = {"reference": person, "head": HEAD, "prompt": "a smiling man", "box": (0, 0, 1, 1)}
    by_region = pipe(people=[one], prompt="a dog", bind_until=1).images
    plain = pipe(reference=person, head=HEAD, prompt="a smiling man").images
    scene = pipe(reference=person, head=HEAD, prompt="a dog").images
    assert (
        np.abs(by_region.astype(int) - plain).max() <= 1 < np.abs(plain.astype(int) - scene).max()
    )
    loose = pipe(people=[one], prompt="a dog", bind_until=0).images
    assert np.abs(by_region.astype(int) - loose).max() > 1


def test_regions_and_their_binding_are_numbers(pipe, person):
    run = lambda box, until: (
        pipe(
            people=[{"reference": person, "head": HEAD, "prompt": "a man", "box": box}],
            prompt="a dog",
            bind_until=until,
        ).images
    )
    first = run((0, 0, 0.5, 1), 0.5)
    before = len(pipe.programs._compiled)
    assert (first != run((0.5, 0, 1, 1), 0.5)).any() and (first != run((0, 0, 0.5, 1), 1)).any()
    assert len(pipe.programs._compiled) == before


def test_boxes_cover_what_they_cover_and_the_nearer_head_comes_first(pipe, heads):
    boxes = (0.1, 0.2, 0.7, 0.9), (0.43, 0.35, 0.98, 1.0)
    people = [SubjectRequest((), box=box) for box in boxes]
    masks = regions.region_masks(pipe.head_model, people, heads, (64, 96), (16, 24))
    fine = np.zeros((2, 1600, 2400))
    for one, (x0, y0, x1, y1) in zip(fine, boxes):
        one[round(y0 * 1600) : round(y1 * 1600), round(x0 * 2400) : round(x1 * 2400)] = 1
    covered = fine.reshape(2, 16, 100, 24, 100).mean((2, 4))
    np.testing.assert_allclose(masks[1], covered[1], atol=1e-6)
    np.testing.assert_allclose(masks[0], np.minimum(covered[0], 1 - covered[1]), atol=1e-6)


def test_without_a_box_it_is_the_head_and_what_is_below(pipe, heads):
    people = [SubjectRequest((), prompt="x")]
    (mask,) = regions.region_masks(pipe.head_model, people, heads[:1], (64, 64), (32, 32))
    rows, columns = np.nonzero(mask > 0.5)
    x, y = np.asarray(heads[0].translation) / np.asarray(heads[0].size)[::-1] * 32
    assert rows.max() == 31 and 0 < rows.min() < y and columns.min() < x < columns.max() < 31


def test_painted_regions(pipe, heads):
    painted = np.zeros((128, 128), np.uint8)
    painted[:, :64] = 255
    people = [SubjectRequest((), mask=painted)]
    mask = lambda people, size: regions.region_masks(
        pipe.head_model, people, heads[:1], size, (16, 16)
    )
    np.testing.assert_array_equal(
        mask(people, (64, 64))[0], np.arange(16)[None] < 8 + np.zeros((16, 1))
    )
    with pytest.raises(PhotoError, match="128x128 pixels, and the picture 96x64"):
        mask(people, (64, 96))
    with pytest.raises(PhotoError, match="covers nothing"):
        mask([SubjectRequest((), mask=np.zeros_like(painted))], (64, 64))


def test_weights_of_texts(pipe):
    """One text in each position where bound; half of the scene's elsewhere; always 1 in all."""
    masks = np.zeros((1, 2, 4, 8), np.float32)
    masks[0, 0, :, :3], masks[0, 1, :2, 5:] = 1, 1
    weights = RegionWeights(jnp.asarray(masks), pipe.config.unet)
    hard, loose = (np.asarray(w[0][0]).reshape(3, 4, 8) for w in (weights.hard, weights.loose))
    np.testing.assert_array_equal(hard[1:], masks[0])
    np.testing.assert_array_equal(hard[0], 1 - masks[0].sum(0))
    np.testing.assert_array_equal(loose[1:], masks[0] / 2)
    np.testing.assert_allclose(loose.sum(0), 1)
    deep = np.asarray(weights.hard[1][0]).reshape(3, 2, 4)
    # Column 1 of the half-size grid is half the first person's: people come before the scene.
    np.testing.assert_array_equal(deep[1], [[1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(deep.sum(0), 1)
    pair = (jnp.zeros((1, 6, 4)), jnp.zeros((1, 6, 4)))
    blocks = {"encoder": {"down": {"0": {"a": pair}, "1": {"a": pair}}, "middle": {"a": pair}}}
    for bound, first in ((True, weights.hard[0]), (False, weights.loose[0])):
        made = weights.bind(
            {**blocks, "up": {"1": {"a": pair}, "0": {"a": pair}}}, jnp.bool_(bound)
        )
        np.testing.assert_array_equal(made["encoder"]["down"]["0"]["a"].weights, first)
        np.testing.assert_array_equal(made["up"]["0"]["a"].weights, first)
        for node in (made["encoder"]["down"]["1"], made["encoder"]["middle"], made["up"]["1"]):
            np.testing.assert_array_equal(node["a"].weights, weights.hard[1])


def test_a_head_stands_in_its_box(pipe, person):
    people = [
        {"reference": person, "box": (0.0, 0.2, 0.5, 1.0)},
        {"reference": person, "box": (0.5, 0.0, 1.0, 1.0), "head": {"position": (0.8, 0.4, 0.3)}},
    ]
    request = pipe.request(people=people, prompt="x", size=(128, 64))
    made = pipe.condition(request)
    asked = [one["asked_head"]["position"] for one in made.settings["people"]]
    np.testing.assert_allclose(asked[0], (0.25, 0.6, 0.4))
    assert asked[1] == [0.8, 0.4, 0.3] and made.regions.shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"box": (0.5, 0, 0.5, 1)}, "is empty"),
        ({"box": (0, 0, 1)}, "box is x0, y0, x1, y1"),
        ({"box": (0, 0, 2, 1)}, "box must lie between 0 and 1"),
        ({"box": (0, 0, 1, 1), "mask": "m.png"}, "a box or a mask, not both"),
        ({"prompt": 3}, "must be a text"),
        ({"prompt": "[a:b:0.5]"}, "changes while sampling"),
        ({"words": "x"}, "not words"),
    ],
)
def test_what_cannot_be_a_region(pipe, person, astronaut_file, more, message):
    with pytest.raises(SettingError, match=message):
        pipe.request(people=[{"reference": person, **more}], prompt="x")
    folder = astronaut_file.parent
    people = [{"reference": astronaut_file.name, **more}]
    wrong, _ = Checker(pipe.config)({"people": people, "prompt": "x"}, folder)
    assert wrong and wrong[0].startswith("people[0].")


def test_command_jobs_and_repeating(pipe, tiny_folder, astronaut_file, tmp_path, caplog):
    base = ["generate", "--model", str(tiny_folder), "--size", "128x64"]
    Image.new("L", (128, 64), 255).save(tmp_path / "mask.png")
    people = [
        f"ref={astronaut_file},box=0/0/0.5/1,prompt=a man, smiling, with a hat",
        f"ref={astronaut_file},mask={tmp_path / 'mask.png'},yaw=5",
    ]
    who = [word for one in people for word in ("--person", one)]
    first, again = tmp_path / "first", tmp_path / "again"
    assert app.main([*base, *who, "--prompt", "x", "--out", str(first)]) == 0
    made = metadata.read_settings(first / "picture_00.png")
    assert made["people"][0]["prompt"] == "a man, smiling, with a hat"
    assert made["people"][0]["box"] == [0, 0, 0.5, 1] and made["bind_until"] == 0.5
    assert made["people"][1]["mask"]["name"] == "mask.png"
    photos = ["--person", f"ref={astronaut_file}", "--person", people[1].removesuffix(",yaw=5")]
    repeat = ["--repeat", str(first / "picture_00.png"), "--out", str(again)]
    assert app.main([base[0], *base[1:3], *photos, *repeat]) == 0
    pictures = [np.asarray(Image.open(f / "picture_00.png")) for f in (first, again)]
    np.testing.assert_array_equal(*pictures)
    caplog.clear()
    repeat_module.compare(str(first / "picture_00.png"), made)
    assert not caplog.messages
    made["people"][1]["mask"]["sha256"] = "0"
    repeat_module.compare(str(first / "picture_00.png"), made)
    assert caplog.messages[0].startswith("the mask of a person is not the one")
    job = {
        "prompt": "x",
        "size": "128x64",
        "people": [
            {
                "reference": str(astronaut_file),
                "box": [0, 0, 0.5, 1],
                "prompt": "a man, smiling, with a hat",
            },
            {"reference": str(astronaut_file), "mask": "mask.png", "head": {"yaw": 5}},
        ],
    }
    wrong, request = Checker(pipe.config)(json.loads(json.dumps(job)), tmp_path)
    assert not wrong
    image = np.asarray(pipe.make([(pipe.condition(request), 0)])[0])[0]
    assert np.abs(np.rint(image * 255) - pictures[0]).max() <= 1


def test_small_faces_see_their_own_words(pipe, person):
    people = [{"reference": person, "prompt": "a man", "head": {"position": (0.5, 0.5, 0.2)}}]
    one = pipe.condition(pipe.request(people=people, prompt="a dog", detail=0.5))
    image = np.zeros((64, 64, 3), np.uint8)
    (face,) = small_faces.enlarged_faces(one, image, pipe.head_model, pipe.config)
    alone = pipe.condition(pipe.request(reference=person, prompt="a man"))
    np.testing.assert_array_equal(face.prompts[0].token_ids, alone.prompts[0].token_ids)
    assert face.regions is None and not face.request.has_regions and len(face.prompts) == 2
