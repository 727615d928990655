"""What is prepared once for training: colors put behind people, captions without them, mouths that
are somebody else's.
"""

import json

import cv2
import jax
import numpy as np
import pytest
from records_standin import write_standin

from caphuman_jax.errors import DataError
from caphuman_jax.face import colors
from caphuman_jax.head import pose
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.training import dataset, resident_batches
from data_pipeline.records.columns import load_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Seven records of made-up photos: the second is a drawing, the last has no colors."""

    def change(record, number):
        found = {
            "kind": "sepia" if number == 6 else "colour",
            "smile": "smiling",
            "background": "blue",
            "glasses": True,
            "drawing": number == 1,
        }
        return record | {
            "attributes": json.dumps({name: value for name, value in found.items() if value})
        }

    return load_records(
        write_standin(
            tmp_path_factory.mktemp("records") / "some", 7, albedo=(4801, 3), change=change
        )
    )


def test_records_become_what_a_step_draws_from(records):
    data = dataset.build(records, np.array([0, 1, 3, 4, 5, 6]), log=lambda line: None)
    assert data["name"].tolist() == [
        f"photo-{i:06}" for i in (0, 3, 4, 5, 6)
    ]  # without the drawing
    assert set(resident_batches.resident(data)) == {
        *resident_batches.ON_DEVICE,
        "colour_index",
        "grey_index",
    }
    assert (
        data["grey"].tolist() == [False] * 4 + [True]
        and np.ptp(data["pictures"][4], axis=-1).max() == 0
    )
    np.testing.assert_array_equal(data["pictures"][:4], records.pictures[[0, 3, 4, 5]])
    # 3, 4 and 5 show one person, and so does 6 with two others who are not taken.
    assert data["partner"].tolist() == [
        [0, 0, 0, 0],
        [1, 2, 3, 1],
        [2, 1, 3, 2],
        [3, 1, 2, 3],
        [4, 4, 4, 4],
    ]
    words = ClipTokenizer()(["background glasses"])[0, 1:3]
    said = [
        [np.isin(word, data["captions"][i, :, kind]) for word in words]
        for i, kind in ((0, 0), (0, 2), (4, 1), (4, 2))
    ]
    assert said == [
        [True, True],
        [False, True],
        [False, True],
        [False, True],
    ]  # no colors are said of what has none
    assert data["tokens"].shape == (5, 4, 49, 512) and np.allclose(
        np.linalg.norm(data["vectors"], axis=-1), 1, atol=1e-5
    )
    assert data["region"].shape == data["person"].shape == (5, 44, 44) and data["covered"][
        0
    ].tolist() == pytest.approx([0, 0.88, 44, 44])


def test_hints_are_those_of_the_records_heads(records):
    some = records.take(np.array([3, 4, 6]))
    grey = np.array([False, False, True])
    heads = dataset.without_color(some.heads, grey)
    hints = np.asarray(
        dataset.render(
            load_head(),
            heads,
            np.array([[0, 1, 0, 0], [1, 0, 1, 1], [2, 2, 2, 2]]),
            grey,
            44,
            chunk=2,
        )
    )
    own = np.asarray(
        render_hints_batch(load_head(), jax.tree.map(lambda column: column[:2], some.heads), 44, 44)
    )
    levels = np.concatenate([own[..., :3] / 2 + 0.5, own[..., 3:]], axis=-1) * 255
    assert hints.shape == (3, 2, 44, 44, 9) and np.abs(hints[:2, 0] - levels).max() <= 0.51
    assert (
        np.ptp(hints[2, :, ..., 3:6], axis=-1).max() <= 1
        and np.ptp(hints[0, 0, ..., 3:6], axis=-1).max() > 5
    )
    assert (
        hints[:, 0] != hints[:, 1]
    ).mean() > 0.05  # somebody else's albedo, and the shape of the partner


def test_heads_of_another_model_are_told(records):
    other = records.heads.__class__(
        **{**vars(records.heads), "albedo": np.ones((7, 12, 3), np.float32)}
    )
    with pytest.raises(DataError, match="not of the head model anny .* without --model"):
        dataset.render(load_head(), other, np.zeros((7, 4), int), np.zeros(7, bool), 44, chunk=8)


def test_people_are_cut_out_a_little_inside_of_the_mask():
    mask = np.zeros((256, 256), np.uint8)
    mask[64:192, 64:192] = 255
    cut = dataset.solid_person(cv2.GaussianBlur(mask, (0, 0), 4), 64)
    assert (
        cut.shape == (64, 64)
        and cut[32, 32] == 255
        and cut[2, 2] == 0
        and 25**2 < (cut > 127).sum() < 32**2
    )


def test_every_shade_is_called_by_its_word():
    ids, rgb = dataset.plain_backgrounds(ClipTokenizer(), np.random.default_rng(0))
    assert len(ids) == len(rgb) == len(colors.SURFACE) and rgb.shape[1:] == (dataset.SHADES, 3)
    assert (ids[..., -1] == 49407).all()  # none is cut off
    for word, shades in zip(colors.SURFACE, rgb):
        seen = cv2.cvtColor(shades[None], cv2.COLOR_RGB2LAB)[0]
        assert {colors.color_word(lab) for lab in seen} == {word}
        assert np.ptp(shades, axis=0).max() > 0.02


def test_turned_heads_and_uncommon_expressions_are_rare():
    turned = np.zeros((40, 3), np.float32)
    turned[:, 0] = np.where(np.arange(40) % 2, 6, -6)
    turned[3] = (35, 0, 0)
    turned[5] = (0, -25, 0)
    expression = np.full((40, 52), 0.1, np.float32)
    expression[7, 20:24] = 0.9
    rarity = dataset.head_rarity(np.asarray(pose.rotation_matrix(*turned.T)), expression)
    assert rarity.shape == (40,) and rarity.dtype == np.float32
    assert set(np.argsort(rarity)[-3:].tolist()) == {3, 5, 7} and np.median(rarity) < 1


@pytest.mark.parametrize("kind, said", [(None, 1), ("black-and-white", 1), ("no background", 0)])
def test_flags_are_named_whenever_they_are_seen(kind, said):
    found = {"kind": "colour", "smile": "smiling", "background": "flag"}
    rng = np.random.default_rng(0)
    texts = [dataset.compose(found, rng, kind) for _ in range(30)]
    assert {"in front of a flag" in text for text in texts} == {bool(said)}


def test_captions_without_background_say_nothing_of_it():
    found = {"kind": "colour", "background": "teal", "clothes": "black", "smile": "smiling"}
    rng = np.random.default_rng(0)
    said = {
        kind: [dataset.compose(found, rng, kind) for _ in range(60)]
        for kind in (None, "no background", "black-and-white")
    }
    assert 10 < sum("teal background" in text for text in said[None]) < 50
    assert not any("background" in text for text in said["no background"]) and any(
        "black clothes" in text for text in said["no background"]
    )
    assert all("black" in text and "clothes" not in text for text in said["black-and-white"])
    assert "a photo of a person" in said["no background"]  # as short as what people type


def test_a_lent_mouth_changes_the_mouth_alone():
    model = load_head()
    rng = np.random.default_rng(0)
    albedo = np.ones((3, len(model.mean), 3), np.float32) * rng.uniform(0.3, 0.6, (3, 1, 3)).astype(
        np.float32
    )
    lips = np.unique(np.asarray(model.landmark_vertices)[[13, 14]])  # the middle of the lips
    albedo[0, lips] *= 1.5  # the first has teeth there
    changed = dataset.change_mouths(model, albedo, np.zeros(3, bool))
    # The second gets them, in its own color; whoever had them loses them.
    np.testing.assert_allclose(changed[1, lips], albedo[1, lips] * 1.5, rtol=0.02)
    np.testing.assert_allclose(changed[0, lips], albedo[0, lips] / 1.5, rtol=0.02)
    far = np.abs(np.asarray(model.mean)[:, 1] - np.asarray(model.mean)[lips, 1].mean()) > 1.0
    assert far.sum() > 100
    np.testing.assert_array_equal(changed[:, far], albedo[:, far])


def test_regions_hold_the_features():
    angles = np.linspace(0, 2 * np.pi, 478)
    landmarks = np.stack(
        [0.5 + 0.3 * np.cos(angles), 0.5 + 0.3 * np.sin(angles), 0 * angles], axis=1
    )
    region, features = dataset.face_regions(landmarks, 64)
    assert region.shape == features.shape == (64, 64) and set(np.unique(region)) == set(
        np.unique(features)
    ) == {0, 255}
    assert region[32, 32] == 255 and region[2, 2] == 0


def test_both_ways_to_recognize_agree(monkeypatch):
    """onnxruntime, on CPUs, and the network as a JAX function, elsewhere."""
    crops = np.random.default_rng(0).integers(0, 256, (11, 112, 112, 3), np.uint8)
    vectors, features = dataset._recognizer()(crops)  # in parts of eight and three
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    wanted_vectors, wanted_features = dataset._recognizer()(crops)
    np.testing.assert_allclose(vectors, wanted_vectors, atol=1e-4)
    np.testing.assert_allclose(features.reshape(wanted_features.shape), wanted_features, atol=2e-3)
