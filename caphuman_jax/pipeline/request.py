"""What is asked for, checked before any photo is looked at."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import samplers
from caphuman_jax.errors import SettingError
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.person.person import Person, WantedHead

log = logging.getLogger("caphuman_jax")

LARGEST_SIDE = 4096
LANDMARKS = "landmarks"
OWN_SETTINGS = ("prompt", "negative", "seed")
"""Settings that each picture of a batch has for itself; the others are the batch's."""
Reference = PhotoSource | Person


@dataclasses.dataclass(frozen=True)
class Asked:
    """One person as they were asked for."""

    references: tuple
    head: WantedHead
    face: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is asked for, checked, before any photo is looked at; of `Pipeline.request`. settings:
    JSON types; plan: of `samplers.make_sampler`;
    size: (H, W); people: as they were asked for; controls: (ControlNet, picture, strength) each;
    pictures first … first + num - 1.
    """

    settings: dict
    plan: samplers.SamplerCoefficients
    size: tuple[int, int]
    people: tuple[Asked, ...]
    photos: str
    controls: tuple[tuple[str, PhotoSource, float], ...]
    num: int
    first: int


def checked_settings(
    config: ModelConfig,
    prompt,
    negative,
    seed,
    sampler,
    steps,
    eta,
    guidance,
    identity_guidance,
    head_guidance,
    guidance_rescale,
    strength,
    identity_until,
    hard_gate,
    guidance_interval,
    reuse,
) -> tuple[dict, samplers.SamplerCoefficients]:
    """The settings as JSON types, checked, and the sampler's plan; the arguments are those of
    `Pipeline.request`. Raises SettingError.
    """
    best, diffusion = config.sampling, config.diffusion
    sampler = best.sampler if sampler is None else sampler
    own = sampler == best.sampler  # another sampler than the model's own takes its standard noise
    settings = {
        "prompt": _text(prompt, "prompt"),
        "negative": _text(negative, "negative prompt"),
        "seed": whole(seed, "seed", 0, 2**32 - 1),
        "sampler": sampler,
        "steps": whole(best.steps if steps is None else steps, "steps", 1, diffusion.num_timesteps),
        "spacing": best.spacing,
        "eta": _real((best.eta if own else 0.0) if eta is None else eta, "eta", 0, 1),
        "guidance": _real(best.guidance if guidance is None else guidance, "guidance", 0, 100),
        "identity_guidance": _real(identity_guidance, "identity_guidance", 0, 100),
        "head_guidance": _real(head_guidance, "head_guidance", 0, 100),
        "guidance_rescale": _real(
            best.guidance_rescale if guidance_rescale is None else guidance_rescale,
            "guidance_rescale",
            0,
            1,
        ),
        "strength": _real(strength, "strength", 0, 10),
        "identity_until": _real(identity_until, "identity_until", -1, diffusion.num_timesteps),
        "hard_gate": bool(hard_gate),
        "guidance_interval": _interval(guidance_interval, diffusion.num_timesteps),
        "reuse": whole(reuse, "reuse", 1, diffusion.num_timesteps),
    }
    return settings, samplers.make_sampler(
        sampler, diffusion, settings["steps"], spacing=settings["spacing"], eta=settings["eta"]
    )


def asked_people(people, reference, head, face, model: HeadModel) -> list[Asked]:
    """The people of a call, checked before any photo is looked at. Raises SettingError, HeadError."""
    if people and (reference is not None or head is not None or face is not None):
        raise SettingError(
            "reference, head and face are for one person; with several, each of them has their own"
        )
    if not people:
        people = [{"reference": reference, "head": head, "face": face}]
    asked = []
    for one in people:
        unknown = set(one) - {"reference", "head", "face"}
        if unknown:
            raise SettingError(
                f"a person has a reference, a head and a face, no {', '.join(sorted(unknown))}"
            )
        references = one.get("reference")
        references = tuple(references) if isinstance(references, (list, tuple)) else (references,)
        if not references or any(photo is None for photo in references):
            raise SettingError("a reference photo is needed for each person")
        wanted = WantedHead.of(one.get("head"))
        wanted.check(model)
        asked.append(Asked(references, wanted, one.get("face")))
    return asked


def checked_controls(
    controls: Sequence[Mapping], config: ModelConfig
) -> list[tuple[str, PhotoSource, float]]:
    """(ControlNet of the model, picture, strength) each. Raises SettingError."""
    checked = []
    for control in controls:
        unknown = set(control) - {"name", "picture", "strength"}
        if unknown or not {"name", "picture"} <= set(control):
            raise SettingError(
                f"a control has a name, a picture and a strength, not "
                f"{', '.join(map(str, control))}"
            )
        if control["name"] not in config.controlnets:
            there = ", ".join(config.controlnets) or "none; caphuman import --controlnet adds one"
            raise SettingError(
                f"the model {config.name} has no ControlNet named {control['name']!r}; it has "
                f"{there}"
            )
        checked.append(
            (
                control["name"],
                control["picture"],
                _real(control.get("strength", 1.0), "strength of a control", 0, 10),
            )
        )
    names = [name for name, _, _ in checked]
    if len(set(names)) < len(names):
        raise SettingError(f"each ControlNet can be used once; asked for: {', '.join(names)}")
    return checked


def picture_size(size: int | tuple[int, int] | None, config: ModelConfig) -> tuple[int, int]:
    """(height, width) in pixels of a side, a (width, height) or None. Raises SettingError for sizes
    that cannot be made.
    """
    step = config.vae.downsampling * 2 ** (len(config.unet.channel_multipliers) - 1)
    sides = np.full(2, config.image_size) if size is None else np.asarray(size)
    sides = np.repeat(sides, 2) if sides.ndim == 0 else sides
    if (
        sides.shape != (2,)
        or sides.dtype.kind not in "iu"
        or (sides < step).any()
        or (sides > LARGEST_SIDE).any()
        or (sides % step).any()
    ):
        raise SettingError(
            f"the size {size} cannot be made; sides are multiples of {step} from {step} to "
            f"{LARGEST_SIDE} pixels, "
            f"best {config.image_size}"
        )
    width, height = map(int, sides)
    if (height, width) != (config.image_size,) * 2:
        log.warning(
            "the model was trained on %dx%d pixels; %dx%d may come out worse",
            config.image_size,
            config.image_size,
            width,
            height,
        )
    return height, width


def whole(value, name: str, low: int, high: int) -> int:
    """A setting that is a whole number from low to high. Raises SettingError."""
    number = _real(value, name, low, high)
    if number != int(number):
        raise SettingError(f"{name} must be a whole number, not {value}")
    return int(number)


def _text(prompt, name: str) -> str:
    if not isinstance(prompt, str):
        raise SettingError(f"the {name} is a text, not {type(prompt).__name__}")
    return prompt


def _interval(value, largest: float) -> list[float] | None:
    """Two timesteps, the smaller first."""
    if value is None:
        return None
    if isinstance(value, str) or len(value) != 2:
        raise SettingError(
            f"guidance_interval is two timesteps between 0 and {largest}, not {value!r}"
        )
    return sorted(_real(end, "guidance_interval", 0, largest) for end in value)


def _real(value, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingError(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise SettingError(f"{name} must lie between {low:g} and {high:g}, not {number:g}")
    return number
