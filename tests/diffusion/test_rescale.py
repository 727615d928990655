"""Guidance rescale against Diffusers'."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from caphuman_jax.diffusion.rescale import rescale_guidance


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_equals_diffusers(phi):
    with_text, without = (
        np.random.default_rng(0).standard_normal((2, 3, 8, 6, 4), dtype=np.float32) + 0.3
    )
    guided = without + 7 * (with_text - without)
    guided[1] *= 3  # each picture has its own deviation
    expected = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(with_text), phi).numpy()
    ours = rescale_guidance(jnp.asarray(guided), jnp.asarray(with_text), jnp.float32(phi))
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)
    if phi == 1:
        np.testing.assert_allclose(
            np.std(ours, axis=(1, 2, 3)), np.std(with_text, axis=(1, 2, 3)), rtol=1e-5
        )
