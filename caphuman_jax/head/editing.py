"""The wanted head: whose numbers are taken from where, and heads asked for in words and numbers."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from caphuman_jax.errors import HeadError
from caphuman_jax.head import pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.head.spherical_harmonics import SH_CONSTANTS
from caphuman_jax.io import checks
from caphuman_jax.nn.typing import Array

# What can be taken from another head. Identity and albedo are never taken: they are whose the
# picture is.
PARTS = {
    "position": ("scale", "translation"),
    "pose": ("rotation",),
    "expression": ("expression",),
    "lighting": ("light",),
}
DEFAULT_TAKE = ("position", "pose")
FRAMINGS = ("head", "photo")
"""What a photo that lends its head is framed by: the square around the head, or the photo."""

# Presets in ARKit weights, each scaled by the weight that is asked for.
PRESETS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {
        "mouthSmileLeft": 0.9,
        "mouthSmileRight": 0.9,
        "cheekSquintLeft": 0.4,
        "cheekSquintRight": 0.4,
        "eyeSquintLeft": 0.3,
        "eyeSquintRight": 0.3,
        "jawOpen": 0.06,
    },
    "laugh": {
        "mouthSmileLeft": 0.9,
        "mouthSmileRight": 0.9,
        "jawOpen": 0.35,
        "mouthUpperUpLeft": 0.4,
        "mouthUpperUpRight": 0.4,
        "eyeSquintLeft": 0.5,
        "eyeSquintRight": 0.5,
        "cheekSquintLeft": 0.5,
        "cheekSquintRight": 0.5,
    },
    "surprised": {
        "browInnerUp": 0.8,
        "browOuterUpLeft": 0.8,
        "browOuterUpRight": 0.8,
        "eyeWideLeft": 0.7,
        "eyeWideRight": 0.7,
        "jawOpen": 0.4,
    },
    "sad": {
        "browInnerUp": 0.8,
        "mouthFrownLeft": 0.8,
        "mouthFrownRight": 0.8,
        "mouthShrugLower": 0.3,
    },
    "angry": {
        "browDownLeft": 1.0,
        "browDownRight": 1.0,
        "eyeSquintLeft": 0.4,
        "eyeSquintRight": 0.4,
        "noseSneerLeft": 0.5,
        "noseSneerRight": 0.5,
        "mouthPressLeft": 0.5,
        "mouthPressRight": 0.5,
    },
    "wink": {"eyeBlinkLeft": 1.0, "mouthSmileLeft": 0.3},
    "eyes-closed": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "mouth-open": {"jawOpen": 0.6},
    "kiss": {"mouthPucker": 1.0},
}

# Light presets: direction towards the light (x right in the picture, y up, z towards the viewer)
# and strength.
LIGHTS: dict[str, tuple[tuple[float, float, float], float]] = {
    "soft": ((0.0, 0.3, 1.0), 0.1),
    "front": ((0.0, 0.1, 1.0), 0.4),
    "left": ((-1.0, 0.2, 0.4), 0.6),
    "right": ((1.0, 0.2, 0.4), 0.6),
    "top": ((0.0, 1.0, 0.4), 0.6),
    "bottom": ((0.0, -1.0, 0.4), 0.6),
    "top-left": ((-0.7, 0.7, 0.5), 0.6),
    "top-right": ((0.7, 0.7, 0.5), 0.6),
    "back": ((0.0, 0.3, -1.0), 0.5),
}
# The largest angles that the head is meant for; beyond, more of it is hidden than was ever seen in
# a frontal photo.
LIMITS = {"yaw": 90.0, "pitch": 60.0, "roll": 180.0}


def mix(
    model: HeadModel, reference: Head, wanted: Head, take: str | Iterable[str] = DEFAULT_TAKE
) -> Head:
    """The reference person's head, with `take` from the wanted head: any of "position", "pose",
    "expression", "lighting", or "all".

    Identity (shape) and albedo are always the reference's. Position is taken relative to the
    photo's height and center (`hints.fit_to_size`): a head that stands in the middle and fills half
    the height of the wanted photo does so in the result, whatever the two sizes in pixels are. The
    sides of a photo that is wider than the picture are outside of it. What is not taken stays as it
    was in the reference photo. A model of FLAME is mixed as CapHuman mixes DECA's numbers: position
    is the camera, and a pose turns about FLAME's root in front of it. Raises HeadError for an
    unknown part."""
    parts = parse_take(take)
    height, width = (float(side) for side in np.asarray(reference.size))
    placed = fit_to_size(wanted, height, width)
    mixed = dataclasses.replace(
        reference, **{field: getattr(placed, field) for part in parts for field in PARTS[part]}
    )
    return model.place_by_camera(mixed, placed if "position" in parts else reference)


def parse_take(take: str | Iterable[str]) -> tuple[str, ...]:
    """Parts from "position,pose", ["pose", …] or "all", without repeats, in the order of PARTS."""
    if not isinstance(take, Iterable):
        raise HeadError(f"take must name parts such as position,pose, not {take!r}")
    names = [name.strip() for name in take.split(",")] if isinstance(take, str) else list(take)
    if not all(isinstance(name, str) for name in names):
        raise HeadError(f"take must name parts such as position,pose, not {names!r}")
    names = [name for name in names if name]
    if not names:
        raise HeadError(
            f"nothing to take from the head photo; choose from {', '.join(PARTS)} or all"
        )
    for name in names:
        if name != "all" and name not in PARTS:
            raise HeadError(_unknown("part of a head", name, [*PARTS, "all"]))
    return tuple(part for part in PARTS if part in names or "all" in names)


def from_numbers(
    model: HeadModel,
    reference: Head,
    *,
    yaw: float | None = None,
    pitch: float | None = None,
    roll: float | None = None,
    expression: Mapping[str, float] | str | None = None,
    light=None,
    position: Sequence[float | None] | None = None,
) -> Head:
    """The reference's head with some of its numbers replaced; what is None stays as it is.

    yaw, pitch, roll: degrees, signs as in `pose`. expression: names (ARKit, or a preset) and
    weights in [0,1], as a dict or as text; it replaces the whole expression. light: a preset, text
    (see `parse_light`), or 9×3 SH numbers. position: (x, y, size),
    x in widths of the picture, y and size in heights; one that is None stays as it is. x and y are
    where the head's middle (between the ears) is, from the top left; size is the face from chin to
    hairline. The picture is `reference.size`; see `hints.fit_to_aspect` for one of another aspect
    ratio. Raises HeadError for unknown names, NaN and numbers out of range."""
    angles = [float(a) for a in np.asarray(reference.angles)]
    for i, (name, value) in enumerate(zip(LIMITS, (yaw, pitch, roll))):
        if value is not None:
            angles[i] = _number(value, name, -LIMITS[name], LIMITS[name])
    changes: dict[str, Array] = {}
    if any(value is not None for value in (yaw, pitch, roll)):
        changes["rotation"] = pose.rotation_of_numbers(*angles)
    if expression is not None:
        changes["expression"] = expression_vector(model, expression)
    if light is not None:
        changes["light"] = parse_light(light)
    if position is not None:
        if isinstance(position, str) or not hasattr(position, "__len__"):
            raise HeadError(f"position takes three numbers, x, y and size, not {position!r}")
        if len(position) != 3:
            raise HeadError(f"position takes three numbers, x, y and size, not {len(position)}")
        own = position_of(model, reference) if None in tuple(position) else position
        position = [b if a is None else a for a, b in zip(position, own)]
        x, y = (
            _number(value, name, -1, 2)
            for value, name in zip(position, ("x of position", "y of position"))
        )
        part = _number(position[2], "size of position", 0.02, 3)
        height, width = (float(side) for side in np.asarray(reference.size))
        changes["translation"] = np.asarray([x * width, y * height], np.float32)
        changes["scale"] = np.asarray(part * height / face_height(model), np.float32)
    return dataclasses.replace(reference, **changes)


def position_of(model: HeadModel, head: Head) -> tuple[float, float, float]:
    """The head's position as `from_numbers` takes it: (x, y, size), in parts of `head.size`."""
    height, width = (float(side) for side in np.asarray(head.size))
    x, y = (float(value) for value in np.asarray(head.translation))
    return x / width, y / height, float(head.scale) * face_height(model) / height


def face_height(model: HeadModel) -> float:
    """Chin to hairline of the mean face in model units (landmarks 152 and 10)."""
    points = (
        model.mean[model.landmark_vertices[[152, 10]]]
        * model.landmark_weights[[152, 10]][..., None]
    ).sum(axis=1)
    return float(np.linalg.norm(points[0] - points[1]))


def parse_expression(text: str) -> dict[str, float]:
    """ "smile=0.8,jawOpen=0.3" → {"smile": 0.8, "jawOpen": 0.3}; a name alone has weight 1."""
    result: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if name in result:
            raise HeadError(f"the expression {name!r} is given twice")
        try:
            result[name] = float(value) if equals else 1.0
        except ValueError:
            raise HeadError(
                f"the weight of expression {name!r} must be a number from 0 to 1, not {value!r}"
            ) from None
    if not result:
        raise HeadError("no expression given; write for example smile=0.8,jawOpen=0.3, or neutral")
    return result


def expression_vector(
    model: HeadModel, expression: Mapping[str, float] | str
) -> Float[np.ndarray, " e"]:
    """Weights (E,) float32 in the model's order; presets and single names add up, capped at 1.

    A FLAME head takes the same names, and besides them its own coefficients and turns (from -5 to
    5)."""
    if isinstance(expression, str):
        expression = parse_expression(expression)
    if not isinstance(expression, Mapping):
        raise HeadError(f"an expression has names and weights, not {expression!r}")
    arkit, basis = model.arkit_basis()
    weights, own = (
        np.zeros(len(arkit), np.float32),
        np.zeros(len(model.expression_names), np.float32),
    )
    for name, value in expression.items():
        if name not in PRESETS and name not in arkit:
            if name not in model.expression_names:
                raise HeadError(
                    _unknown(
                        "expression",
                        name,
                        [*PRESETS, *arkit, *(n for n in model.expression_names if n not in arkit)],
                    )
                )
            own[model.expression_names.index(name)] += _number(
                value, f"the expression number {name!r}", -5, 5
            )
            continue
        value = _number(value, f"the weight of expression {name!r}", 0, 1)
        for part, share in PRESETS.get(name, {name: 1.0}).items():
            if part in arkit:
                weights[arkit.index(part)] += value * share
    weights = np.minimum(weights, 1)
    return weights @ basis + own


def expression_numbers(model: HeadModel, head: Head) -> dict[str, float]:
    """Name → weight of every expression of a head."""
    return dict(zip(model.expression_names, (float(w) for w in np.asarray(head.expression))))


def parse_light(light) -> Float[np.ndarray, "9 3"]:
    """Light (9,3) float32 from a preset ("left", "soft" …), "x,y,z,strength" or 27 numbers (9×3),
    or "preset=strength".

    Raises HeadError for anything else, NaN, a direction of length 0 or a strength outside [0,1].
    """
    if not isinstance(light, str):
        try:
            array = np.asarray(light, np.float32)
        except (TypeError, ValueError, OverflowError):
            array = np.zeros(0, np.float32)
        if array.size != 27 or not np.all(np.isfinite(array)):
            raise HeadError("light takes 27 finite numbers (9 functions × red, green, blue)")
        return array.reshape(9, 3)
    name, equals, value = (part.strip() for part in light.partition("="))
    if name in LIGHTS:
        direction, strength = LIGHTS[name]
        return directional_light(
            direction,
            _number(value, f"the strength of light {name!r}", 0, 1) if equals else strength,
        )
    numbers = light.replace(",", " ").split()
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise HeadError(
            _unknown("light", name, list(LIGHTS))
            + "; or four numbers: direction x,y,z and strength"
        ) from None
    if len(values) == 27:
        return parse_light(values)
    if len(values) != 4:
        raise HeadError(
            f"light takes a preset ({', '.join(LIGHTS)}) or four numbers, direction x,y,z and "
            f"strength; got {light!r}"
        )
    return directional_light(values[:3], values[3])


def directional_light(direction: Sequence[float], strength: float) -> Float[np.ndarray, "9 3"]:
    """White SH light (9,3): an even part and one lamp from `direction` (x right, y up, z towards
    the viewer).

    strength 0 is even light, 1 is the lamp alone. Shading is 1 - strength + strength × 1.4 × the
    nine-term expansion of the clamped cosine round the direction (Ramamoorthi & Hanrahan 2001; 1/4,
    1/2 and 5/32 in the zonal functions): with 1.4 the face is about as bright under a lamp in front
    as under even light."""
    strength = _number(strength, "the strength of the light", 0, 1)
    vector = np.asarray(
        [_number(v, "the light's direction", -1e6, 1e6) for v in direction], np.float64
    )
    if np.linalg.norm(vector) < 1e-9:
        raise HeadError("the light's direction has length 0")
    x, y, z = vector / np.linalg.norm(vector)
    # max(0, n·d) ≈ 1/4 + 1/2 n·d + 5/32 (3 (n·d)² - 1), written out in the nine functions of n.
    band = 5 / 32
    lamp = np.asarray(
        [
            1 / 4,
            x / 2,
            y / 2,
            z / 2,
            6 * band * x * y,
            6 * band * x * z,
            6 * band * y * z,
            1.5 * band * (x * x - y * y),
            0.5 * band * (3 * z * z - 1),
        ]
    )
    total = 1.4 * strength * lamp
    total[0] += 1 - strength
    return np.repeat((total / SH_CONSTANTS)[:, None], 3, axis=1).astype(np.float32)


def _number(value, what: str, low: float, high: float) -> float:
    return checks.number(what, value, low, high, HeadError)


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=4, cutoff=0.5)
    names = [k for k in known if k.lower() in near] or [
        k for k in known if name.lower() in k.lower()
    ][:6]
    return f"there is no {what} called {name!r}; " + (
        f"near it: {', '.join(names)}"
        if names
        else f"there are: {', '.join(known[:14])}{' …' if len(known) > 14 else ''}"
    )
