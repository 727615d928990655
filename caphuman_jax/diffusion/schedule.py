"""The noise schedule, and which of its timesteps a sampler visits.

alpha means the cumulative product ᾱ_t throughout: latents_t = sqrt(alpha) · x0 + sqrt(1 − alpha) · noise
(DDPM, arXiv 2006.11239, eq. 4).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from caphuman_jax.config import DiffusionConfig

SPACINGS = ("original", "leading", "trailing")


class Steps(NamedTuple):
    """The timesteps of one sampling run, noisiest first; a pytree, so `lax.scan` can walk over it.

    timesteps (S,) int32; alphas and alphas_prev (S,) float32: the signal level before and after each step.
    """

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray


def betas(config: DiffusionConfig) -> np.ndarray:
    """Variances (train_steps,) float64, linear in the square root of beta, as Stable Diffusion has them."""
    roots = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.train_steps, dtype=np.float64)
    return roots**2


def alphas(config: DiffusionConfig) -> np.ndarray:
    """Cumulative signal levels (train_steps,) float32, computed in float64."""
    return np.cumprod(1.0 - betas(config)).astype(np.float32)


def timesteps(config: DiffusionConfig, steps: int, spacing: str = "original") -> np.ndarray:
    """Timesteps (S,) int32, noisiest first.

    "original": 1, 1 + ⌊T/steps⌋, … as CapHuman and the first Stable Diffusion code do, which gives one step more
    where `steps` does not divide T = train_steps. "leading": the same stride, never more than `steps`.
    "trailing": starts at T − 1 (arXiv 2305.08891, table 2). Values are held below T, so that no step falls off the
    schedule (with the original spacing 3 steps would ask for t = 1000).
    """
    total = config.train_steps
    if not 1 <= steps <= total:
        raise ValueError(f"steps is {steps}; it must lie between 1 and {total}")
    stride = total // steps
    if spacing == "original":
        ascending = np.arange(0, total, stride) + 1
    elif spacing == "leading":
        ascending = np.arange(steps) * stride + 1
    elif spacing == "trailing":
        ascending = np.round(total - np.arange(steps) * (total / steps))[::-1] - 1
    else:
        raise ValueError(f"spacing is {spacing!r}; known: {', '.join(SPACINGS)}")
    return np.unique(np.minimum(ascending, total - 1))[::-1].astype(np.int32)


def sampling_steps(config: DiffusionConfig, steps: int, spacing: str = "original") -> Steps:
    """Everything a sampler needs to know of the schedule. The last step ends at alphas[0], not at 1, as the original's."""
    levels = alphas(config)
    times = timesteps(config, steps, spacing)
    return Steps(times, levels[times], levels[np.append(times[1:], 0)])
