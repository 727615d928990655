"""Captions say what was measured and nothing else."""

import numpy as np
import pytest

from caphuman_jax.face.landmarks import expression_names
from data_pipeline import captions

NEUTRAL = dict.fromkeys(expression_names(), 0.0)
COLOURS = np.array([[45, 4, -34, 0.3], [12, 0, 0, 0.2], [36, 9, 16, 0.05], [65, 15, 18, 0.2], [50, 5, 0, 1]], np.float32)


@pytest.mark.parametrize("lab, word", [((95, 0, 0), "white"), ((8, 1, 0), "black"), ((45, 5, -30), "blue"), ((40, 50, 28), "red"), ((50, 0, 1), "grey")])
def test_colour_words(lab, word):
    assert captions.colour_word(np.array(lab, np.float32)) == word


def test_unknown_colour_has_no_word():
    assert captions.colour_word(np.full(3, np.nan)) is None


def test_what_is_said_of_a_photo():
    found = captions.attributes(NEUTRAL | {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.7}, COLOURS, {"glasses": True, "beard": False})
    assert found["smile"] == "smiling" and found["background"] == "blue" and found["clothes"] == "black" and found["hair"] == "brown"
    text = captions.compose(found, np.random.default_rng(0), keep=1.0)
    assert all(word in text for word in ("smiling person", "glasses", "brown hair", "black clothes", "blue background"))
    assert "beard" not in text and "mouth" not in text
    silent = captions.compose(found, np.random.default_rng(0), keep=0.0)
    assert "glasses" not in silent and "background" not in silent and "person" in silent


def test_one_tint_is_no_colour():
    sepia = COLOURS.copy()
    sepia[:, 1:3] = np.array([4.0, 12.0]) * np.linspace(0.7, 1.3, 5)[:, None]
    assert captions.is_monochrome(sepia) and not captions.is_monochrome(COLOURS)
    assert captions.attributes(NEUTRAL, sepia)["kind"] == "sepia"
    assert "hair" not in captions.attributes(NEUTRAL, sepia)
    assert captions.attributes(NEUTRAL, COLOURS * np.array([1, 0, 0, 1], np.float32))["kind"] == "black-and-white"


def test_captions_vary_and_repeat_with_the_seed():
    found = captions.attributes(NEUTRAL, COLOURS)
    texts = [captions.compose(found, np.random.default_rng(i)) for i in range(30)]
    assert len(set(texts)) > 8
    assert texts == [captions.compose(found, np.random.default_rng(i)) for i in range(30)]
