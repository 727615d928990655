"""DDIM step for step against Diffusers, with a denoiser whose answer is known, and repeatable noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import samplers, schedule

SD15 = DiffusionConfig()
SHAPE = (2, 6, 5, 4)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def toy_denoiser(x, t):
    """Something nonlinear that numpy, torch and JAX all compute alike."""
    return 0.7 * x + 0.1 * x * x / (1 + x * x) + 0.001 * t


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_loop_equals_diffusers_step_for_step(diffusers_schedule, prediction, eta, spacing):
    theirs = diffusers_schedule(spacing, prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[prediction])
    theirs.set_timesteps(10)
    keys = samplers.picture_keys(3, [0, 1])
    expected, x = [], torch.from_numpy(normal(0))
    for i, t in enumerate(theirs.timesteps):
        noise = torch.from_numpy(np.array(samplers._normal(keys, i + 1, SHAPE[1:])))
        x = theirs.step(toy_denoiser(x, t), t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
        expected.append(x.numpy())

    @jax.jit
    def ours(latents):
        return samplers.sample(
            lambda x, t, _: toy_denoiser(x, t.astype(jnp.float32)), latents,
            schedule.sampling_steps(SD15, 10, spacing), prediction=prediction, eta=eta, keys=keys, trajectory=True,
        )

    final, after_each = ours(normal(0))
    np.testing.assert_allclose(after_each, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(final, after_each[-1])


def test_original_spacing_equals_the_formula_in_float64():
    steps = schedule.sampling_steps(SD15, 6)
    levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    times = [997, 831, 665, 499, 333, 167, 1, 0]
    x = normal(0).astype(np.float64)
    for t, t_prev in zip(times, times[1:]):
        eps = toy_denoiser(x, float(t))
        x0 = (x - np.sqrt(1 - levels[t]) * eps) / np.sqrt(levels[t])
        x = np.sqrt(levels[t_prev]) * x0 + np.sqrt(1 - levels[t_prev]) * eps
    ours = samplers.sample(lambda x, t, _: toy_denoiser(x, t.astype(jnp.float32)), jnp.asarray(normal(0)), steps)
    np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_perfect_denoiser_brings_back_the_picture(prediction):
    x0 = jnp.asarray(normal(1))
    levels = jnp.asarray(schedule.alphas(SD15))

    def perfect(x, t, _):
        a = levels[t]
        noise = (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)
        return noise if prediction == "epsilon" else jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x0

    steps = schedule.sampling_steps(SD15, 20, "trailing")
    result = samplers.sample(perfect, jnp.asarray(normal(0)), steps, prediction=prediction)
    remaining = np.sqrt(1 - float(levels[0]))  # the last step ends at alphas[0], so a little noise is left
    assert np.abs(result - x0).max() < 5 * remaining


def test_step_constants_arrive_one_step_at_a_time():
    steps = schedule.sampling_steps(SD15, 4, "leading")
    constants = {"t": jnp.asarray(steps.timesteps)}
    x = jnp.asarray(normal(0))
    a = samplers.sample(lambda x, t, c: toy_denoiser(x, c["t"].astype(jnp.float32)), x, steps, step_constants=constants)
    b = samplers.sample(lambda x, t, c: toy_denoiser(x, t.astype(jnp.float32)), x, steps)
    np.testing.assert_array_equal(a, b)


def test_low_precision_output_keeps_the_state_in_float32():
    steps = schedule.sampling_steps(SD15, 4, "leading")
    result = samplers.sample(lambda x, t, _: x.astype(jnp.bfloat16), jnp.asarray(normal(0)), steps)
    assert result.dtype == jnp.float32


def test_noise_depends_on_seed_and_picture_index_alone():
    shape = (8, 8, 4)
    four = samplers.initial_noise(samplers.picture_keys(7, [0, 1, 2, 3]), shape)
    alone = samplers.initial_noise(samplers.picture_keys(7, [2]), shape)
    other = samplers.initial_noise(samplers.picture_keys(8, [2]), shape)
    np.testing.assert_array_equal(four[2], alone[0])
    assert np.abs(alone - other).max() > 0.5 and np.abs(four[1] - four[2]).max() > 0.5
    assert abs(float(four.mean())) < 0.15 and abs(float(four.std()) - 1) < 0.1
    keys = samplers.picture_keys(7, [0, 1, 2, 3])
    assert np.abs(samplers._normal(keys, 1, shape) - four).max() > 0.5


def test_missing_noise_and_unknown_predictions_are_errors():
    x, a = jnp.asarray(normal(0)), jnp.float32(0.5)
    steps = schedule.sampling_steps(SD15, 4)
    with pytest.raises(ValueError, match="noise"):
        samplers.ddim_step(x, x, a, a, eta=1.0)
    with pytest.raises(ValueError, match="keys"):
        samplers.sample(lambda x, t, _: x, x, steps, eta=1.0)
    with pytest.raises(ValueError, match="prediction is"):
        samplers.ddim_step(x, x, a, a, prediction="x0")
