"""Which steps of a sampler may cost less: those without guidance, and those that reuse the deep
features of the step before.

Made on the host with NumPy, as the sampler's plan is; compiled functions take both as arguments, so
other steps need no other program."""

from __future__ import annotations

import numpy as np

from caphuman_jax.diffusion.samplers import Plan


def guided_steps(plan: Plan, interval: tuple[float, float]) -> np.ndarray:
    """(S,) bool: the steps whose timestep lies in the interval, both ends included (guidance in a
    limited interval, arXiv 2404.07724).
    """
    return (plan.timesteps >= min(interval)) & (plan.timesteps <= max(interval))


def fresh_steps(plan: Plan, every: int, guided: np.ndarray | None = None) -> np.ndarray:
    """(S,) bool: the steps that run the whole UNet, one of `every` (DeepCache, arXiv 2312.00858,
    uniform 1:N).

    Where guidance begins the unguided half has nothing to reuse yet: that step is fresh, and
    `every` is counted from there."""
    fresh, since = np.zeros(plan.steps, bool), 0
    for i in range(plan.steps):
        begins = i == 0 or (guided is not None and guided[i] and not guided[i - 1])
        since = 0 if begins else (since + 1) % every
        fresh[i] = since == 0
    return fresh
