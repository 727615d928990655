"""DeepCache (arXiv 2312.00858): steps that reuse the UNet's deep features of an earlier step.

Which steps do is decided on the host with NumPy. Compiled functions take the mask as an argument,
so another interval needs no other program."""

from __future__ import annotations

import numpy as np

from caphuman_jax.diffusion.samplers import SamplerCoefficients
from caphuman_jax.diffusion.sampling_loop import Denoise, denoise_by_step


def recompute_mask(
    sampler: SamplerCoefficients,
    cache_interval: int,
    guided: np.ndarray | None = None,
    first: int = 0,
) -> np.ndarray:
    """Mark the steps (S,) that run the whole UNet, one of every `cache_interval` (the paper's
    uniform 1:N).

    Args:
        cache_interval: 1 recomputes at every step.
        guided: Steps (S,) with guidance. Where it begins, the unguided half has nothing to reuse
            yet: that step recomputes, and the interval is counted from there.
        first: Number of the first step that is computed; it recomputes.
    """
    mask, since = np.zeros(sampler.steps, bool), 0
    for i in range(sampler.steps):
        begins = i in (0, first) or (guided is not None and guided[i] and not guided[i - 1])
        since = 0 if begins else (since + 1) % cache_interval
        mask[i] = since == 0
    return mask


def with_cache(whole: Denoise, from_cache: Denoise) -> Denoise:
    """Run `whole` in the steps where the step constant "recompute_mask" is true, `from_cache` in
    the others. The carry holds the cached features.
    """
    return denoise_by_step("recompute_mask", whole, from_cache)
