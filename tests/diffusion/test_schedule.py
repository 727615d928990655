"""The schedule against Diffusers' and, for the original's spacing, against its own definition."""

import numpy as np
import pytest

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import schedule

SD15 = DiffusionConfig()


def test_levels_equal_diffusers(diffusers_schedule):
    theirs = diffusers_schedule()
    np.testing.assert_allclose(schedule.betas(SD15), theirs.betas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(schedule.alphas(SD15), theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)
    assert schedule.alphas(SD15).dtype == np.float32


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_spacing_equals_diffusers(diffusers_schedule, spacing, steps):
    theirs = diffusers_schedule(spacing)
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(schedule.timesteps(SD15, steps, spacing), theirs.timesteps.numpy())


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


def test_each_step_ends_where_the_next_begins():
    steps = schedule.sampling_steps(SD15, 20)
    np.testing.assert_array_equal(steps.alphas_prev[:-1], steps.alphas[1:])
    assert steps.alphas_prev[-1] == schedule.alphas(SD15)[0]


@pytest.mark.parametrize(("steps", "spacing"), [(0, "original"), (1001, "leading"), (20, "sideways")])
def test_impossible_requests_are_errors(steps, spacing):
    with pytest.raises(ValueError, match="steps is|spacing is"):
        schedule.timesteps(SD15, steps, spacing)
