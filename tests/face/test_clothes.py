"""Clothes of a portrait, found by position and color."""

import cv2
import numpy as np
import pytest

from caphuman_jax.face.clothes import clothes_mask
from caphuman_jax.face.colors import SURFACE

SIDE = 256
SKIN, HAIR = (70, 16, 20), (20, 4, 8)


def rgb(lab):
    color = cv2.cvtColor(np.array(lab, np.float32)[None, None], cv2.COLOR_LAB2RGB)[0, 0]
    return np.round(255 * np.clip(color, 0, 1)).astype(np.uint8)


def ellipse(center, radii):
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot((x - center[0]) / radii[0], (y - center[1]) / radii[1]) < 1


@pytest.fixture
def person():
    """A drawn portrait: (parts as masks, landmarks round the face)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    face = ellipse((128, 100), (35, 50))
    shoulders = (y > 165 - 0.15 * (60 - np.minimum(abs(x - 128), 60))) & (abs(x - 128) < 105)
    neck = (abs(x - 128) < 18) & (y > 140) & (y < 175)
    hair = ellipse((128, 80), (45, 52)) & (y < 95) & ~face
    parts = {"clothes": shoulders & ~neck, "neck": neck, "hair": hair, "face": face}
    angles = np.linspace(0, 2 * np.pi, 478)
    marks = np.stack([128 + 35 * np.sin(angles), 100 - 50 * np.cos(angles)], axis=1) / SIDE
    marks[10] = (0.5, 50 / SIDE)
    return parts, marks.astype(np.float32)


def paint(parts, clothes):
    picture = np.full((SIDE, SIDE, 3), rgb((80, 0, -10)), np.uint8)
    colors = {"clothes": clothes, "hair": HAIR, "face": SKIN, "neck": SKIN, "long": HAIR}
    for name, mask in parts.items():
        picture[mask] = rgb(colors[name])
    return picture, np.any(list(parts.values()), axis=0).astype(np.float32)


@pytest.mark.parametrize("word", ["black", "white", "red", "dark blue"])
def test_the_clothes_are_found_and_neck_face_and_hair_are_not(person, word):
    parts, landmarks = person
    picture, shown = paint(parts, SURFACE[word])
    found = clothes_mask(picture, shown, landmarks, long_hair=False)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    assert found[parts["clothes"]].mean() > 0.95
    assert found[parts["neck"] & ~parts["clothes"]].mean() < 0.1
    for name in ("face", "hair"):
        assert found[parts[name]].max() < 0.5
    assert found[shown == 0].mean() < 0.01


def test_hair_on_the_shoulders_stays_hair(person):
    parts, landmarks = person
    y, x = np.mgrid[:SIDE, :SIDE]
    locks = (abs(abs(x - 128) - 45) < 10) & (y > 90) & (y < 166)
    picture, shown = paint({**parts, "long": locks}, SURFACE["red"])
    long_hair, short = (clothes_mask(picture, shown, landmarks, long) for long in (True, False))
    above = locks & (y < 153)  # the chin is at 150
    assert long_hair[above].max() < 0.5 and short[above].mean() > 0.15
    assert long_hair[parts["clothes"] & ~locks].mean() > 0.9


def test_nothing_is_found_where_no_person_is_below_the_face(person):
    parts, landmarks = person
    picture, shown = paint({name: parts[name] for name in ("hair", "face")}, SKIN)
    assert clothes_mask(picture, shown, landmarks, long_hair=False).max() == 0
