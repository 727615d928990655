"""The noise schedule, and the timesteps that a sampler visits.

latents_t = alpha_t · x0 + sigma_t · noise with alpha_t = sqrt(ᾱ_t) and sigma_t = sqrt(1 − ᾱ_t),
where ᾱ_t is the cumulative product `alphas_cumprod` (DDPM, arXiv 2006.11239, eq. 4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.errors import SettingError

BETA_SCHEDULES: dict[str, Callable[[DiffusionConfig], np.ndarray]] = {
    "scaled_linear": lambda c: _line(c.beta_start**0.5, c.beta_end**0.5, c) ** 2,
    "linear": lambda c: _line(c.beta_start, c.beta_end, c),
}
"""Name, as in diffusers' scheduler settings → betas (num_timesteps,) in float64. Stable Diffusion's
is linear in the square root; DDPM's is linear.
"""

SPACINGS = ("original", "leading", "trailing", "linspace")


def alphas_cumprod(config: DiffusionConfig, dtype=np.float32) -> np.ndarray:
    """ᾱ_t at every timestep, (num_timesteps,), computed in float64.

    With `zero_terminal_snr` the square roots are shifted and stretched so that the first stays and
    the last is exactly 0 (arXiv 2305.08891, algorithm 1). Raises SettingError where that meets
    prediction_type "epsilon": at pure noise, an epsilon prediction carries no information about
    x0."""
    products = np.cumprod(1.0 - _betas(config))
    if config.zero_terminal_snr:
        if config.prediction_type != "v":
            raise SettingError(
                f'zero_terminal_snr needs a model that predicts "v", not "{config.prediction_type}"; '  # noqa: E501
                f"correct one of the two in its config"
            )
        roots = np.sqrt(products)
        products = np.square((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1])))
    return products.astype(dtype)


def timesteps(
    config: DiffusionConfig, steps: int, spacing: str = "original", *, end_is_counted: bool = False
) -> np.ndarray:
    """Timesteps (S,) int32, noisiest first, S at most `steps` but for "original".

    "original": 1, 1 + ⌊T/steps⌋, … as CapHuman and the first Stable Diffusion code do, which gives
    one step more where `steps` does not divide T = num_timesteps. "leading": the same stride, never
    more than `steps`. "trailing": evenly back from T − 1. "linspace": evenly from T − 1 to 0 (the
    last three as arXiv 2305.08891, table 2, names them). Values are held below T, so that no step
    falls off the schedule (with the original spacing 3 steps would ask for t = 1000).

    end_is_counted: "leading" and "linspace" are laid out for one point more, and the last one, near
    0, is left out: it is where the last step of a solver ends. Raises SettingError."""
    total, points = config.num_timesteps, steps + end_is_counted
    check_spacing(spacing)
    most = total - end_is_counted if spacing != "trailing" else total
    if not 1 <= steps <= most:
        raise SettingError(f"steps is {steps}; it must lie between 1 and {most}")
    if spacing == "original":
        ascending = np.arange(0, total, total // steps) + 1
    elif spacing == "leading":
        ascending = np.arange(points)[int(end_is_counted) :] * (total // points) + 1
    elif spacing == "trailing":
        # As Diffusers counts down, to the last bit, since halves are rounded; held to `steps`,
        # which it may exceed by a timestep of -1.
        ascending = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
    else:
        ascending = np.round(np.linspace(0, total - 1, points))[int(end_is_counted) :]
    return np.unique(np.minimum(ascending, total - 1))[::-1].astype(np.int32)


def check_spacing(spacing: str) -> None:
    """Raises SettingError where there is no such spacing."""
    if spacing not in SPACINGS:
        raise SettingError(f"spacing is {spacing!r}; known: {', '.join(SPACINGS)}")


def _betas(config: DiffusionConfig) -> np.ndarray:
    if config.beta_schedule not in BETA_SCHEDULES:
        raise SettingError(
            f"beta_schedule is {config.beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}"
        )
    return BETA_SCHEDULES[config.beta_schedule](config)


def _line(first: float, last: float, config: DiffusionConfig) -> np.ndarray:
    return np.linspace(first, last, config.num_timesteps, dtype=np.float64)
