"""What is drawn by lot for a sample: functions of (seed, epoch, record number) alone, so that
neither hosts, batches nor a restart change them.

Numbers come from a hash of those three and of what is drawn (a counter-based generator), for a
whole batch at once."""

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

# What a number is for; a new use gets a new number, so that the others stay as they are.
_SCALE, _ROLL, _SHIFT_X, _SHIFT_Y, _MIRROR, _LIGHT, _LENT, _PARTNER, _CAPTION, _TEXT, _IDENTITY = (
    range(11)
)


@dataclasses.dataclass(frozen=True)
class Drops:
    """Shares of samples that lose what guidance compares with: the text; the identity, where there
    is text and where there is none.
    """

    text: float = 0.12
    identity: float = 0.05
    identity_without_text: float = 0.2

    def __post_init__(self):
        _shares(dataclasses.asdict(self), "drop.")


@dataclasses.dataclass(frozen=True)
class Lots:
    """What is drawn, and how. augment: see AugmentConfig. light: pictures and their hints are made
    brighter or darker by a factor that is log-uniform in [1/light, light]. lent_identity: share of
    samples whose identity (shape, albedo, recognition vector, image tokens) is that of another
    photo of the person, where there is one. Raises SettingError."""

    augment: AugmentConfig = AugmentConfig()
    light: float = 1.1
    lent_identity: float = 0.5
    drop: Drops = dataclasses.field(default_factory=Drops)

    def __post_init__(self):
        _shares({"augment.mirror": self.augment.mirror, "lent_identity": self.lent_identity})
        for name, value in (("augment.scale", self.augment.scale), ("light", self.light)):
            if not 1 <= value < 10:
                raise SettingError(f"{name} is a factor of 1 or more, not {value}")

    @property
    def only_mirrors(self) -> bool:
        """Whether pictures are only mirrored, or left as they are."""
        return (
            dataclasses.replace(self.augment, mirror=0.0, roll_limit=MIDDLE.roll_limit) == MIDDLE
            and self.light == 1
        )


def draw(lots: Lots, seed: int, epoch: np.ndarray, index: np.ndarray, captions: int) -> dict:
    """The lots of records `index` (n,) in `epoch` (n,):

    change {scale (n,), angle (n,) radians clockwise as seen, shift (n, 2) in parts of the picture,
    mirror (n,) bool} (see augment.sample_transforms), light (n,) factors, caption (n,) int64 below
    `captions`, without_text and without_identity (n,) bool; floats are float32. Besides lent (n,)
    bool and partner (n,) float64 in [0, 1), for `lender`."""
    # Half a step inside of (0, 1), where the normal's quantiles are finite.
    uniform = lambda use: (hashed(seed, epoch, index, use) >> np.uint64(12)) * 2.0**-52 + 2.0**-53
    spread = lambda use: 2 * uniform(use) - 1
    single = lambda x: np.asarray(x, np.float32)
    cfg = lots.augment
    roll = np.clip(ndtri(uniform(_ROLL)) * cfg.roll_degrees, -cfg.roll_limit, cfg.roll_limit)
    without_text = uniform(_TEXT) < lots.drop.text
    return {
        "change": {
            "scale": single(np.exp(spread(_SCALE) * np.log(cfg.scale))),
            "angle": single(np.deg2rad(roll)),
            "shift": single(np.stack([spread(_SHIFT_X), spread(_SHIFT_Y)], axis=-1) * cfg.shift),
            "mirror": uniform(_MIRROR) < cfg.mirror,
        },
        "light": single(np.exp(spread(_LIGHT) * np.log(lots.light))),
        "caption": (uniform(_CAPTION) * captions).astype(np.int64),
        "without_text": without_text,
        "without_identity": uniform(_IDENTITY)
        < np.where(without_text, lots.drop.identity_without_text, lots.drop.identity),
        "lent": uniform(_LENT) < lots.lent_identity,
        "partner": uniform(_PARTNER),
    }


def lender(index: int, lent: bool, partner: float, partners: np.ndarray) -> int:
    """Number of the record whose identity a sample gets: one of `partners` (-1: none) with equal
    chances if it is lent, else its own.
    """
    others = partners[partners >= 0]
    return int(others[int(partner * len(others))]) if lent and len(others) else int(index)


def _shares(values: dict[str, float], prefix: str = "") -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise SettingError(f"{prefix}{name} is a share between 0 and 1, not {value}")
