"""The schedule against Diffusers' and, for the original's spacing, against its own definition."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import loss, samplers, schedule
from caphuman_jax.errors import SettingError

SD15 = DiffusionConfig()
ZERO_SNR = DiffusionConfig(prediction_type="v", zero_terminal_snr=True)


def betas_of(config):
    alphas_cumprod = schedule.alphas_cumprod(config, np.float64)
    return 1 - alphas_cumprod / np.append(1, alphas_cumprod[:-1])


def test_levels_equal_diffusers(diffusers_schedule):
    theirs = diffusers_schedule()
    np.testing.assert_allclose(betas_of(SD15), theirs.betas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        schedule.alphas_cumprod(SD15), theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6
    )
    assert schedule.alphas_cumprod(SD15).dtype == np.float32


def test_the_linear_schedule_equals_diffusers(diffusers_schedule):
    linear = dataclasses.replace(SD15, beta_schedule="linear")
    theirs = diffusers_schedule(beta_schedule="linear")
    np.testing.assert_allclose(betas_of(linear), theirs.betas.numpy(), rtol=1e-6)
    with pytest.raises(SettingError, match="'cosine'; known: scaled_linear, linear"):
        schedule.alphas_cumprod(dataclasses.replace(SD15, beta_schedule="cosine"))


def test_zero_terminal_snr_equals_diffusers(diffusers_schedule):
    theirs = diffusers_schedule(rescale_betas_zero_snr=True)
    levels = schedule.alphas_cumprod(ZERO_SNR)
    assert levels[-1] == 0 and levels[0] == schedule.alphas_cumprod(SD15)[0]
    np.testing.assert_allclose(betas_of(ZERO_SNR), theirs.betas.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(levels, theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(SettingError, match='predicts "v"'):
        schedule.alphas_cumprod(DiffusionConfig(zero_terminal_snr=True))


def test_training_at_zero_snr_shows_noise_alone_and_asks_for_the_picture():
    """The last timestep as training/diffusion.py makes it: noised, its v and its weight."""
    x, noise = jnp.full((1, 2, 2, 1), 0.5, jnp.float32), jnp.full((1, 2, 2, 1), -2.0, jnp.float32)
    alpha = jnp.asarray(schedule.alphas_cumprod(ZERO_SNR)[[999]])
    np.testing.assert_array_equal(loss.add_noise(x, noise, alpha), noise)
    np.testing.assert_array_equal(loss.prediction_target(x, noise, alpha, "v"), -x)
    assert float(loss.min_snr_weight(alpha, prediction_type="v")[0]) == 0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_spacing_equals_diffusers(diffusers_schedule, spacing, steps):
    theirs = diffusers_schedule(spacing)
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(
        schedule.timesteps(SD15, steps, spacing), theirs.timesteps.numpy()
    )


@pytest.mark.parametrize("steps", [1, 2, 6, 20, 30, 50, 250])
def test_original_spacing_is_every_nth_plus_one(steps):
    expected = [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
    np.testing.assert_array_equal(schedule.timesteps(SD15, steps), expected)


def test_six_steps_of_the_original_are_seven():
    np.testing.assert_array_equal(schedule.timesteps(SD15, 6), [997, 831, 665, 499, 333, 167, 1])


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
@pytest.mark.parametrize("steps", [1, 3, 9, 38, 149, 334, 999, 1000])
def test_every_number_of_steps_stays_on_the_schedule(spacing, steps):
    times = schedule.timesteps(SD15, steps, spacing)
    assert np.all(np.diff(times) < 0) and times[0] <= 999 and times[-1] >= 0


def test_steps_that_would_fall_off_the_schedule_are_held_below_its_end():
    np.testing.assert_array_equal(schedule.timesteps(SD15, 3), [999, 667, 334, 1])


def test_counting_the_end_leaves_it_out():
    for spacing, expected in (
        ("leading", [801, 601, 401, 201]),
        ("linspace", [999, 749, 500, 250]),
        ("trailing", [999, 749, 499, 249]),
    ):
        np.testing.assert_array_equal(
            schedule.timesteps(SD15, 4, spacing, end_is_counted=True), expected
        )


@pytest.mark.parametrize("spacing", ["original", "leading"])
@pytest.mark.parametrize("steps", [6, 20])
def test_each_step_of_ddim_ends_where_the_next_begins(spacing, steps):
    """With x0 = 0 a step scales the noise, so the coefficient of the latents is sigma_t after /
    sigma_t before.
    """
    table = samplers.make_sampler("ddim", SD15, steps, spacing=spacing)
    last = np.sqrt(1 - schedule.alphas_cumprod(SD15, np.float64)[0])
    np.testing.assert_allclose(
        table.latents * table.sigma_t, np.append(table.sigma_t[1:], last), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("steps", "spacing"), [(0, "original"), (1001, "leading"), (20, "sideways")]
)
def test_impossible_requests_are_errors(steps, spacing):
    with pytest.raises(SettingError, match="steps is|spacing is"):
        schedule.timesteps(SD15, steps, spacing)
