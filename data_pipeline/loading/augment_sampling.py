"""Random changes of a sample: functions of (seed, epoch, record number) alone, so that neither
hosts, batches nor a restart change them.

The numbers come from a hash of those three and of what the number is for (a counter-based
generator), for a whole batch at once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import ndtri

from caphuman_jax.errors import SettingError
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.loading.shuffle import hashed

MIDDLE = AugmentConfig(scale=1.0, shift=0.0, roll_degrees=0.0, mirror=0.0)
"""No change: the middle of the stored square as it is."""
MIRROR = dataclasses.replace(MIDDLE, mirror=AugmentConfig().mirror)
"""All that stored moments allow: they are of the middle and of its mirror image."""

# What a number is for. A new use gets a new number, so that the others keep their values.
_SCALE, _ROLL, _SHIFT_X, _SHIFT_Y, _MIRROR, _LIGHT, _SWAP, _PARTNER, _CAPTION, _TEXT, _IDENTITY = (
    range(11)
)


@dataclasses.dataclass(frozen=True)
class Drops:
    """Shares of samples, in [0, 1], that lose a condition, as guidance needs.

    Attributes:
        text: share without text.
        identity: share without identity, of the samples with text.
        identity_without_text: share without identity, of the samples without text.
    """

    text: float = 0.12
    identity: float = 0.05
    identity_without_text: float = 0.2

    def __post_init__(self):
        _check_shares(dataclasses.asdict(self), "drop.")


@dataclasses.dataclass(frozen=True)
class AugmentPolicy:
    """Distributions of the random changes.

    Attributes:
        augment: of position, size, roll and side.
        light: images and their hints are made brighter or darker by a factor that is log-uniform in
            [1 / light, light]; light is in [1, 10).
        identity_swap_prob: share of samples whose identity (shape, albedo, recognition vector,
            image tokens) is taken from another photo of the person, where there is one.
        drop: which samples lose a condition.

    Raises:
        SettingError: a value is out of its range.
    """

    augment: AugmentConfig = AugmentConfig()
    light: float = 1.1
    identity_swap_prob: float = 0.5
    drop: Drops = dataclasses.field(default_factory=Drops)

    def __post_init__(self):
        _check_shares(
            {
                "augment.mirror": self.augment.mirror,
                "identity_swap_prob": self.identity_swap_prob,
            }
        )
        for name, value in (("augment.scale", self.augment.scale), ("light", self.light)):
            if not 1 <= value < 10:
                raise SettingError(f"{name} is a factor of 1 or more, not {value}")

    @property
    def only_mirrors(self) -> bool:
        """Whether images are mirrored at most."""
        return (
            dataclasses.replace(self.augment, mirror=0.0, roll_limit=MIDDLE.roll_limit) == MIDDLE
            and self.light == 1
        )


def sample_augmentations(
    policy: AugmentPolicy, seed: int, epoch: np.ndarray, index: np.ndarray, captions: int
) -> dict:
    """Sample the changes of n records.

    Args:
        policy: their distributions.
        seed: of the run.
        epoch: (n,) integers.
        index: (n,) record numbers.
        captions: how many captions a record has.

    Returns:
        "change": {"scale" (n,), "angle" (n,) radians clockwise as seen, "shift" (n, 2) in parts of
        the image's side, "mirror" (n,) bool}, see `augment.sample_transforms`; "light": (n,)
        factors; "caption": (n,) int64 below `captions`; "without_text", "without_identity": (n,)
        bool; "swap_identity": (n,) bool and "partner": (n,) float64 in [0, 1), for
        `identity_source`. Other floats are float32.
    """
    # Half a step inside (0, 1), where the normal distribution's quantiles are finite.
    uniform = lambda use: (hashed(seed, epoch, index, use) >> np.uint64(12)) * 2.0**-52 + 2.0**-53
    symmetric = lambda use: 2 * uniform(use) - 1
    single = lambda x: np.asarray(x, np.float32)
    cfg = policy.augment
    roll = np.clip(ndtri(uniform(_ROLL)) * cfg.roll_degrees, -cfg.roll_limit, cfg.roll_limit)
    without_text = uniform(_TEXT) < policy.drop.text
    return {
        "change": {
            "scale": single(np.exp(symmetric(_SCALE) * np.log(cfg.scale))),
            "angle": single(np.deg2rad(roll)),
            "shift": single(
                np.stack([symmetric(_SHIFT_X), symmetric(_SHIFT_Y)], axis=-1) * cfg.shift
            ),
            "mirror": uniform(_MIRROR) < cfg.mirror,
        },
        "light": single(np.exp(symmetric(_LIGHT) * np.log(policy.light))),
        "caption": (uniform(_CAPTION) * captions).astype(np.int64),
        "without_text": without_text,
        "without_identity": uniform(_IDENTITY)
        < np.where(without_text, policy.drop.identity_without_text, policy.drop.identity),
        "swap_identity": uniform(_SWAP) < policy.identity_swap_prob,
        "partner": uniform(_PARTNER),
    }


def identity_source(index: int, swap: bool, partner: float, partners: np.ndarray) -> int:
    """Number of the record that a sample takes its identity from.

    Args:
        index: the sample's own record.
        swap: take it from one of `partners`, if there are any; otherwise from the own record.
        partner: in [0, 1), chooses the partner; all have equal chances.
        partners: record numbers; -1 for none.
    """
    others = partners[partners >= 0]
    return int(others[int(partner * len(others))]) if swap and len(others) else int(index)


def _check_shares(values: dict[str, float], prefix: str = "") -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise SettingError(f"{prefix}{name} is a share between 0 and 1, not {value}")
