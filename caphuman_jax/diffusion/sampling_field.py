"""What is known of a field of `SamplingParams`, and how its values are checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.io.checks import number, whole

LARGEST_SIDE = 4096
TIMESTEPS = "num_timesteps"
"""An upper limit that the model's noise schedule sets."""


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """What is known of a field besides its default.

    Attributes:
        kind: "text", "switch" (bool), "int", "float", "choice", "interval" (two timesteps), "size",
            "sampler" or "spacing".
        help: one sentence for `--help`.
        low, high: range, both ends included; "num_timesteps" is the model's.
        choices: values of a "choice".
        metavar: names of the values in `--help`.
        flag: whether the command line has it.
        per_image: whether images of one batch may differ in it.
    """

    kind: str
    help: str
    low: float | None = None
    high: float | str | None = None
    choices: tuple[str, ...] = ()
    metavar: str | tuple[str, ...] | None = None
    flag: bool = True
    per_image: bool = False


def field(default, help, kind, low=None, high=None, flag=True, per_image=False, **more):
    """A dataclass field with its `FieldSpec` as metadata."""
    spec = FieldSpec(kind, help, low, high, flag=flag, per_image=per_image, **more)
    return dataclasses.field(default=default, metadata={"spec": spec})


def check(name: str, value: Any, spec: FieldSpec, config: ModelConfig | None = None) -> Any:
    """One field's value in its own type, checked.

    Args:
        name: of the field.
        value: as given; None only where the field's default is None, and passed on.
        spec: what is known of the field.
        config: the model's, for limits that depend on it.

    Raises:
        SettingError: the value is of the wrong type or out of its range.
    """
    if value is None:
        return None
    if spec.kind == "switch":
        if not isinstance(value, bool):
            raise SettingError(f"{name} must be true or false, not {value!r}")
        return value
    if spec.kind in ("text", "choice", "sampler", "spacing"):
        return _word(name, value, spec)
    if spec.kind == "size":
        return image_size(value, config)
    low, high = spec.low, spec.high
    if high == TIMESTEPS:
        high = math.inf if config is None else config.diffusion.num_timesteps
    assert low is not None and not isinstance(high, str | None), "every number has a range"
    if spec.kind == "interval":
        if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
            raise SettingError(f"{name} is two timesteps, such as 200 and 800, not {value!r}")
        return tuple(sorted(number(name, end, low, high) for end in value))
    return whole(name, value, low, high) if spec.kind == "int" else number(name, value, low, high)


def image_size(value: Any, config: ModelConfig | None = None) -> tuple[int, int]:
    """(width, height) in pixels from a side, a pair, or a text such as "256" or "256x320".

    Raises:
        SettingError: something else, or with `config` a size that the model cannot make.
    """
    sides = value
    if isinstance(value, str):
        sides = value.lower().split("x")
        sides = [side.strip() for side in sides]
        if not all(side.isdecimal() for side in sides):
            raise SettingError(
                f"size is a side in pixels or WIDTHxHEIGHT, such as 256 or 256x320, not {value!r}"
            )
        sides = [int(side) for side in sides]
    sides = list(sides) if hasattr(sides, "__len__") else [sides]
    sides = sides * 2 if len(sides) == 1 else sides
    whole_numbers = all(hasattr(side, "__index__") and side is not True for side in sides)
    step = 1
    if config is not None:  # of the autoencoder and the UNet
        step = side_step(config)
    if (
        len(sides) != 2
        or not whole_numbers
        or any(side < step or side > LARGEST_SIDE or side % step for side in sides)
    ):
        made = "" if config is None else f" multiples of {step}"
        best = "" if config is None else f"; best {config.image_size}"
        raise SettingError(
            f"size {value} cannot be made; sides are{made} from {step} to {LARGEST_SIDE} pixels"
            f"{best}"
        )
    width, height = (int(side) for side in sides)
    return width, height


def side_step(config: ModelConfig) -> int:
    """Pixels that sides of images are multiples of: the autoencoder's step times the UNet's."""
    return config.vae.downsampling * 2 ** (len(config.unet.channel_multipliers) - 1)


def _word(name: str, value: Any, spec: FieldSpec) -> str:
    if not isinstance(value, str):
        raise SettingError(f"{name} must be a text, not {type(value).__name__}")
    choices = spec.choices
    if spec.kind in ("sampler", "spacing"):
        # Brings NumPy, which `--help` does not need.
        from caphuman_jax.diffusion import samplers, schedule

        choices = tuple(samplers.SAMPLERS if spec.kind == "sampler" else schedule.SPACINGS)
    if choices and value not in choices:
        raise SettingError(f"there is no {name} {value!r}; choose one of {', '.join(choices)}")
    return value
