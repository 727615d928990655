"""What colors a portrait has: of background, clothes, hair and face, as numbers and as words."""

from __future__ import annotations

import cv2
import numpy as np

# Lab (D65) of the color words, by eye on portraits' backgrounds and clothes.
SURFACE = {
    "black": (12, 0, 0),
    "dark grey": (32, 0, 0),
    "grey": (55, 0, 0),
    "light grey": (77, 0, 0),
    "white": (93, 0, 0),
    "dark blue": (22, 6, -22),
    "blue": (45, 4, -34),
    "light blue": (72, -6, -20),
    "green": (42, -28, 20),
    "teal": (45, -20, -8),
    "brown": (35, 14, 22),
    "beige": (74, 4, 17),
    "red": (42, 52, 30),
    "dark red": (26, 32, 16),
    "pink": (68, 32, 4),
    "purple": (36, 30, -30),
    "yellow": (78, 4, 58),
    "orange": (62, 38, 52),
}
# What else the words are said of: suits of a strong blue are nearer to "purple" than to "blue".
_ALSO = (("blue", (32, 30, -62)),)
# Word, least lightness and chroma, hues in degrees; by eye on generated clothes. Of 2,828 clothes
# and backgrounds of photos, 5 are called otherwise than by the nearest color.
_MUTED = (("green", 0, 9, 120, 175), ("purple", 30, 11, -62, -15))
BACKGROUND, CLOTHES, HAIR, FACE, WHOLE = range(5)


def measure_colors(
    crop: np.ndarray, person: np.ndarray, landmarks: np.ndarray, covered: np.ndarray
) -> np.ndarray:
    """(5, 4) float32: Lab medians and share of pixels of background, clothes, hair, face, whole
    square.

    Lab as OpenCV's float form: L 0–100, a and b about ±127. NaN where a part has too few pixels to
    say. Hair is what lies above the forehead and does not have the color of this face's skin; its
    share is that of the area above the forehead, not of the square.
    """
    small = cv2.resize(crop, (256, 256), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    y, x = np.mgrid[:256, :256] / 256.0
    inside = (x > covered[0]) & (x < covered[2]) & (y > covered[1]) & (y < covered[3])
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    tall, middle = high[1] - low[1], (low[0] + high[0]) / 2
    top = landmarks[10, 1]
    above = (
        inside
        & (person > 0.9)
        & (y < top - 0.06 * tall)
        & (y > top - 0.3 * tall)
        & (abs(x - middle) < 0.3 * tall)
    )
    forehead = (abs(x - middle) < 0.2 * tall) & (y > top + 0.05 * tall) & (y < top + 0.15 * tall)
    cheeks = (abs(x - middle) < 0.3 * tall) & (y > top + 0.5 * tall) & (y < top + 0.62 * tall)
    parts = [
        inside & (person < 0.1),
        inside & (person > 0.9) & (y > high[1] + 0.2 * tall),
        above & ~like(lab, forehead) & ~like(lab, cheeks),
        (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1]) & inside,
        inside,
    ]
    result = np.full((5, 4), np.nan, np.float32)
    for row, mask in zip(result, parts):
        row[3] = mask.mean()
        if mask.sum() >= 60:
            row[:3] = np.median(lab[mask], axis=0)
    result[HAIR, 3] = parts[HAIR].sum() / max(1, above.sum())
    return result


def background_kind(crop: np.ndarray, person: np.ndarray, covered: np.ndarray) -> str | None:
    """What stands behind a person: "flag", "busy" or "plain", or None where too little is seen.

    Flags are recognized by stripes (saturated red close to white) and stars (white specks on dark
    blue), as those of the United States have them; nothing else is busy or plain by how far its
    colors are from one linear gradient.

    Args:
        crop: (S, S, 3) uint8, a square round the head.
        person: (256, 256) probability of a person.
        covered: (4,) x0, y0, x1, y1 of the part that is photo, as fractions.
    """
    small = cv2.resize(crop, (256, 256), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    y, x = np.mgrid[:256, :256] / 256.0
    inside = (x > covered[0]) & (x < covered[2]) & (y > covered[1]) & (y < covered[3])
    # not the edge, where person and background mix
    behind = inside & (cv2.erode((person < 0.1).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0)
    if behind.mean() < 0.06:
        return None
    if _stripes(lab, behind) > STRIPES or _stars(lab, behind) > STARS:
        return "flag"
    return "busy" if _busyness(lab, behind) > BUSY else "plain"


STRIPES, STARS, BUSY = 0.012, 0.015, 9.0
"""Limits of `background_kind`, by eye on 231 photos: shares of the background's pixels, and a
standard deviation in units of Lab.
"""


def _stripes(lab: np.ndarray, behind: np.ndarray) -> float:
    """Share of the background that is saturated red with something white at its side."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    red = behind & (a > 25) & (b > 3) & (b < 1.1 * a) & (lightness < 62)
    white = behind & (lightness > 60) & (np.hypot(a, b) < 18)
    near = cv2.dilate(white.astype(np.uint8), np.ones((3, 25), np.uint8)) > 0
    return float((red & near).sum() / behind.sum())


def _stars(lab: np.ndarray, behind: np.ndarray) -> float:
    """Share of the background that is a small light speck on dark blue."""
    opened = cv2.morphologyEx(lab[..., 0], cv2.MORPH_OPEN, np.ones((13, 13), np.uint8))
    around = cv2.medianBlur(np.clip(lab[..., 2] + 128, 0, 255).astype(np.uint8), 21) - 128.0
    speck = (lab[..., 0] - opened > 22) & (opened < 38) & (around < -5)
    return float((speck & behind).sum() / behind.sum())


def _busyness(lab: np.ndarray, behind: np.ndarray) -> float:
    """Standard deviation of the background's Lab round a linear gradient."""
    y, x = np.nonzero(behind)
    values = cv2.GaussianBlur(lab, (0, 0), 1.5)[y, x]
    plane = np.stack([np.ones_like(x), x, y], axis=1).astype(np.float32) / 256
    rest = values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]
    return float(np.sqrt(np.mean(np.sum(rest**2, axis=1))))


def like(lab: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Which pixels of `lab` (H, W, 3) have about the median color of those in `sample` (H, W) bool;
    lightness counts half.
    """
    if not sample.any():
        return np.zeros(lab.shape[:2], bool)
    difference = (lab - np.median(lab[sample], axis=0)) * np.array([0.5, 1, 1], np.float32)
    return np.linalg.norm(difference, axis=-1) < 14


def hair_word(colors: np.ndarray) -> str | None:
    """ "dark", "brown" or "grey" where a photo shows it clearly, else None.

    Rules by eye on 120 portraits, revised on 653 others; docs/notes/data.md says how often each
    word was right on unseen ones. Lightness counts relative to the face, so that the photo's
    exposure does not matter. Black cannot be distinguished from dark brown; white, fair and red
    hair were too rare, or too similar to lit skin, to be measured.

    Args:
        colors: (5, 4) of `measure_colors`.
    """
    lightness, a, b, share = colors[HAIR].tolist()
    if not np.isfinite(lightness) or not colors[FACE, 0] > 0 or share < 0.45:
        return None
    relative, chroma = lightness / float(colors[FACE, 0]), float(np.hypot(a, b))
    if relative < 0.36:
        return "dark" if share >= 0.5 and a < 14 and chroma < 20 else None
    if relative < 0.55 and share >= 0.65 and 8.5 <= chroma < 26 and a < 14:
        return "brown"
    if 0.58 <= relative < 0.84 and lightness >= 34 and chroma < 7.8 and b > 0:
        return "grey"
    return None


def color_word(lab: np.ndarray) -> str | None:
    """The nearest color word, or None for NaN. Chroma counts more than lightness, as in speech.

    Muted green and purple are nearer to gray or dark blue, but are called by their hue.
    """
    if not np.all(np.isfinite(lab)):
        return None
    names, colors = zip(*SURFACE.items(), *_ALSO)
    difference = np.array(colors, np.float32) - np.asarray(lab, np.float32)
    word = names[int(np.argmin(np.sum((difference * (0.7, 1.0, 1.0)) ** 2, axis=1)))]
    if "grey" not in word and word != "dark blue":
        return word
    lightness, a, b = np.asarray(lab, np.float32).tolist()
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a))
    for muted, least_lightness, least_chroma, low, high in _MUTED:
        if lightness > least_lightness and chroma > least_chroma and low < hue < high:
            return muted
    return word


def is_monochrome(colors: np.ndarray) -> bool:
    """No colors in the picture, or one tint all over (sepia, a green or blue print): every part
    has the same hue.
    """
    parts = colors[np.isfinite(colors[:, 0]), 1:3]
    if np.all(np.abs(parts - parts.mean(0)) < 7) and np.all(np.linalg.norm(parts, axis=1) < 24):
        return True
    tinted = parts[np.linalg.norm(parts, axis=1) > 4]
    if len(tinted) < len(parts) - 1:
        return False
    hues = np.angle(tinted[:, 0] + 1j * tinted[:, 1])
    return bool(np.all(np.abs(np.angle(np.exp(1j * (hues - hues[0])))) < np.deg2rad(10)))
