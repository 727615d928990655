"""Noising, targets, weights and the loss against Diffusers, PyTorch and plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import loss, sampling_loop, schedule

TIMES = np.array([37, 801])
ALPHA = jnp.asarray(schedule.alphas_cumprod(DiffusionConfig())[TIMES])


def normal(seed, shape=(2, 8, 8, 4)):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_noising_and_v_equal_diffusers(diffusers_schedule):
    x, noise = normal(0), normal(1)
    theirs = diffusers_schedule()
    arguments = (torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(TIMES))
    x, noise = jnp.asarray(x), jnp.asarray(noise)
    np.testing.assert_allclose(
        loss.add_noise(x, noise, ALPHA), theirs.add_noise(*arguments), rtol=1e-5, atol=1e-5
    )
    v = loss.prediction_target(x, noise, ALPHA, "v")
    np.testing.assert_allclose(v, theirs.get_velocity(*arguments), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(loss.prediction_target(x, noise, ALPHA), noise)
    with pytest.raises(ValueError, match="prediction_type is"):
        loss.prediction_target(x, noise, ALPHA, "x0")


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_targets_are_what_the_sampler_takes_apart(prediction):
    x, noise, alpha = (
        jnp.asarray(normal(0)),
        jnp.asarray(normal(1)),
        jnp.full((2,), 0.3, jnp.float32),
    )
    output = loss.prediction_target(x, noise, alpha, prediction)
    x0, eps = sampling_loop.split_prediction(
        output,
        loss.add_noise(x, noise, alpha),
        jnp.sqrt(alpha[0]),
        jnp.sqrt(1 - alpha[0]),
        prediction,
    )
    np.testing.assert_allclose(x0, x, atol=1e-5)
    np.testing.assert_allclose(eps, noise, atol=1e-5)


def test_min_snr_weight_makes_the_error_in_x0_count_alike():
    """Weighted eps and v losses both equal min(snr, gamma) times the squared error in x0 (arXiv
    2303.09556).
    """
    snr = np.asarray(ALPHA / (1 - ALPHA), np.float64)
    eps_in_x0 = 1 / snr  # a unit error in eps is an error of sqrt(1/snr) in x0
    v_in_x0 = 1 / (snr + 1)
    for prediction, squared_x0_error in (("epsilon", eps_in_x0), ("v", v_in_x0)):
        weight = loss.min_snr_weight(ALPHA, 5.0, prediction)
        np.testing.assert_allclose(weight, np.minimum(snr, 5.0) * squared_x0_error, rtol=1e-4)


def test_loss_and_its_parts():
    output, target = normal(0), normal(1)
    mask = np.random.default_rng(2).random((2, 8, 8, 1), dtype=np.float32)
    face = (np.random.default_rng(3).random((2, 8, 8, 1)) > 0.5).astype(np.float32)
    total, parts = loss.capface_loss(
        *map(jnp.asarray, (output, target, mask, face)), mask_weight=0.5
    )
    np.testing.assert_allclose(parts["denoise"], np.mean((output - target) ** 2), rtol=1e-5)
    np.testing.assert_allclose(parts["mask"], np.mean((face - mask) ** 2), rtol=1e-5)
    np.testing.assert_allclose(
        total, np.mean((output - target) ** 2) + 0.5 * np.mean((face - mask) ** 2), rtol=1e-5
    )

    weights = np.array([2.0, 0.0], np.float32)
    _, parts = loss.capface_loss(
        *map(jnp.asarray, (output, target, mask, face)), weights=jnp.asarray(weights)
    )
    np.testing.assert_allclose(parts["denoise"], np.mean((output[0] - target[0]) ** 2), rtol=1e-5)

    with pytest.raises(ValueError, match="latent size"):
        loss.capface_loss(*map(jnp.asarray, (output, target, mask, face[:, :4])))


@pytest.mark.parametrize("size", [(16, 16), (9, 7), (40, 24)])
def test_masks_shrink_as_pytorch_shrinks_them(size):
    mask = normal(0, (2, 40, 48, 1))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(mask).permute(0, 3, 1, 2), size=size, mode="bilinear"
    )
    ours = loss.shrink_mask(jnp.asarray(mask), size)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)
