"""Captions from what can be measured in a photo: kind of picture, expression, glasses, hair, clothes, background.

Nothing about sex, age or origin is estimated: a caption says "person". The words are few on purpose, so that a
small text encoder learns each of them from some thousand photos; prompts that use these words are followed best.
"""

from __future__ import annotations

import numpy as np

# Lab (D65) of the colour words, by eye on portraits' backgrounds, clothes and hair.
_SURFACE = {
    "black": (12, 0, 0), "dark grey": (32, 0, 0), "grey": (55, 0, 0), "light grey": (77, 0, 0), "white": (93, 0, 0),
    "dark blue": (22, 6, -22), "blue": (45, 4, -34), "light blue": (72, -6, -20), "green": (42, -28, 20), "teal": (45, -20, -8),
    "brown": (35, 14, 22), "beige": (74, 4, 17), "red": (42, 52, 30), "dark red": (26, 32, 16), "pink": (68, 32, 4),
    "purple": (36, 30, -30), "yellow": (78, 4, 58), "orange": (62, 38, 52),
}
_HAIR = {"black": (12, 1, 2), "dark brown": (24, 5, 8), "brown": (36, 9, 16), "fair": (58, 8, 26), "red": (40, 24, 28), "grey": (52, 0, 2), "white": (78, 0, 4)}
BACKGROUND, CLOTHES, HAIR, FACE, WHOLE = range(5)
PROBES = ("glasses", "beard", "moustache", "bald", "long hair", "drawing")


def colour_word(lab: np.ndarray, words: dict[str, tuple[int, int, int]] = _SURFACE) -> str | None:
    """The nearest colour word, or None for NaN. Chroma counts more than lightness, as in speech."""
    if not np.all(np.isfinite(lab)):
        return None
    names = list(words)
    difference = np.array([words[n] for n in names], np.float32) - np.asarray(lab, np.float32)
    return names[int(np.argmin(np.sum((difference * (0.7, 1.0, 1.0)) ** 2, axis=1)))]


def is_monochrome(colours: np.ndarray) -> bool:
    """No colours in the picture, or one tint all over (sepia, a green or blue print): every part has the same hue."""
    parts = colours[np.isfinite(colours[:, 0]), 1:3]
    if np.all(np.abs(parts - parts.mean(0)) < 7) and np.all(np.linalg.norm(parts, axis=1) < 24):
        return True
    tinted = parts[np.linalg.norm(parts, axis=1) > 4]
    if len(tinted) < len(parts) - 1:
        return False
    hues = np.angle(tinted[:, 0] + 1j * tinted[:, 1])
    return bool(np.all(np.abs(np.angle(np.exp(1j * (hues - hues[0])))) < np.deg2rad(10)))


def attributes(expression: dict[str, float], colours: np.ndarray, probes: dict[str, bool] | None = None) -> dict[str, str | bool]:
    """What a caption may mention, as words. `expression` ARKit weights by name; `colours` (5, 4) of `measure_colours`."""
    smile = (expression["mouthSmileLeft"] + expression["mouthSmileRight"]) / 2
    found: dict[str, str | bool] = {"smile": "smiling" if smile > 0.45 else "serious" if smile < 0.12 else "slight"}
    found["mouth open"] = expression["jawOpen"] > 0.18
    found["eyes closed"] = (expression["eyeBlinkLeft"] + expression["eyeBlinkRight"]) / 2 > 0.6
    found["frown"] = (expression["browDownLeft"] + expression["browDownRight"]) / 2 > 0.45
    if is_monochrome(colours):
        tint = np.linalg.norm(np.nanmean(colours[:, 1:3], axis=0))
        found["kind"] = "sepia" if tint > 6 else "black-and-white"
    else:
        found["kind"] = "colour"
        found["background"] = colour_word(colours[BACKGROUND, :3]) if colours[BACKGROUND, 3] > 0.04 else None
        found["clothes"] = colour_word(colours[CLOTHES, :3]) if colours[CLOTHES, 3] > 0.02 else None
        found["hair"] = colour_word(colours[HAIR, :3], _HAIR) if colours[HAIR, 3] > 0.006 else None
    if found["kind"] != "colour":
        for part, row in (("background", BACKGROUND), ("clothes", CLOTHES)):
            lightness = colours[row, 0] if colours[row, 3] > 0.03 else np.nan
            found[part] = None if not np.isfinite(lightness) else "dark" if lightness < 35 else "light" if lightness > 70 else "grey"
    found.update(probes or {})
    return {k: v for k, v in found.items() if v}


def compose(found: dict[str, str | bool], rng: np.random.Generator, keep: float = 0.8) -> str:
    """One caption of many possible ones; each attribute is mentioned with probability `keep`."""
    say = lambda key: key in found and rng.random() < keep
    kind = {"colour": ["a photo", "a portrait photo", "a colour photo"], "black-and-white": ["a black-and-white photo", "a black and white portrait"],
            "sepia": ["a sepia photo", "an old sepia photo"]}[found["kind"]]
    head = rng.choice(kind) if found["kind"] != "colour" or rng.random() < 0.9 else "a picture"
    if found.get("drawing"):
        head = rng.choice(["a drawing", "a painting"]) if found["kind"] == "colour" else rng.choice(["an engraving", "a drawing"])
    adjective = ""
    if say("smile"):
        adjective = {"smiling": "smiling ", "serious": "serious ", "slight": ""}[found["smile"]]
    person = f"{head} of a {adjective}person"
    details = []
    if say("glasses"):
        details.append("wearing glasses")
    hair = [found["hair"]] if say("hair") and not found.get("bald") else []
    hair += ["long"] if say("long hair") else []
    if found.get("bald") and rng.random() < keep:
        details.append("bald")
    elif hair:
        details.append("with " + " ".join(reversed(hair)) + " hair")
    facial = [w for w in ("beard", "moustache") if say(w)]
    if facial:
        details.append("with a " + " and a ".join(facial))
    if say("mouth open"):
        details.append("with an open mouth")
    if say("eyes closed"):
        details.append("with closed eyes")
    if say("frown"):
        details.append("frowning")
    if say("clothes"):
        details.append(f"in {found['clothes']} clothes")
    if say("background"):
        article = "a " if rng.random() < 0.7 else ""
        details.append(f"{article}{found['background']} background")
    if rng.random() < 0.3:
        rng.shuffle(details)
    return ", ".join([person, *details])
