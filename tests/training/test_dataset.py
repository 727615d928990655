"""What is prepared once for training: colours put behind people, captions without them, mouths that are somebody else's."""

import cv2
import numpy as np

from caphuman_jax.face import colours
from caphuman_jax.head.morphable import load_head
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.training import dataset


def test_every_shade_is_called_by_its_word():
    ids, rgb = dataset.plain_backgrounds(ClipTokenizer(), np.random.default_rng(0))
    assert len(ids) == len(rgb) == len(colours.SURFACE) and rgb.shape[1:] == (dataset.SHADES, 3)
    assert (ids[..., -1] == 49407).all()  # none is cut off
    for word, shades in zip(colours.SURFACE, rgb):
        seen = cv2.cvtColor(shades[None], cv2.COLOR_RGB2LAB)[0]
        assert {colours.colour_word(lab) for lab in seen} == {word}
        assert np.ptp(shades, axis=0).max() > 0.02


def test_captions_without_background_say_nothing_of_it():
    found = {"kind": "colour", "background": "teal", "clothes": "black", "smile": "smiling"}
    rng = np.random.default_rng(0)
    said = {kind: [dataset.compose(found, rng, kind) for _ in range(60)] for kind in (None, "no background", "black-and-white")}
    assert 10 < sum("teal background" in text for text in said[None]) < 50
    assert not any("background" in text for text in said["no background"]) and any("black clothes" in text for text in said["no background"])
    assert all("black" in text and "clothes" not in text for text in said["black-and-white"])
    assert "a photo of a person" in said["no background"]  # as short as what people type


def test_a_lent_mouth_changes_the_mouth_alone():
    model = load_head()
    rng = np.random.default_rng(0)
    albedo = np.ones((3, len(model.mean), 3), np.float32) * rng.uniform(0.3, 0.6, (3, 1, 3)).astype(np.float32)
    lips = np.unique(np.asarray(model.landmark_vertices)[[13, 14]])  # the middle of the lips
    albedo[0, lips] *= 1.5  # the first has teeth there
    changed = dataset.change_mouths(model, albedo, np.zeros(3, bool))
    # The second gets them, in its own colour; whoever had them loses them.
    np.testing.assert_allclose(changed[1, lips], albedo[1, lips] * 1.5, rtol=0.02)
    np.testing.assert_allclose(changed[0, lips], albedo[0, lips] / 1.5, rtol=0.02)
    far = np.abs(np.asarray(model.mean)[:, 1] - np.asarray(model.mean)[lips, 1].mean()) > 1.0
    assert far.sum() > 100
    np.testing.assert_array_equal(changed[:, far], albedo[:, far])


def test_regions_hold_the_features():
    angles = np.linspace(0, 2 * np.pi, 478)
    landmarks = np.stack([0.5 + 0.3 * np.cos(angles), 0.5 + 0.3 * np.sin(angles), 0 * angles], axis=1)
    region, features = dataset.face_regions(landmarks, 64)
    assert region.shape == features.shape == (64, 64) and set(np.unique(region)) == set(np.unique(features)) == {0, 255}
    assert region[32, 32] == 255 and region[2, 2] == 0
