"""The loop: the original's DDIM, step constants, precision, and noise that can be repeated.
(Samplers against Diffusers: test_sampler_coefficients.)
"""

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import samplers, sampling_loop

SD15 = DiffusionConfig()
SHAPE = (2, 6, 5, 4)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def stateless(predict):
    """A `Denoise` from a function of latents, timestep and step constants."""
    return lambda x, t, step, carry: (predict(x, t, step), carry)


def toy_denoiser(x, t):
    """Something nonlinear that numpy and JAX compute alike."""
    return 0.7 * x + 0.1 * x * x / (1 + x * x) + 0.001 * t


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_original_spacing_equals_the_formula_in_float64(eta):
    table = samplers.make_sampler("ddim", SD15, 6, eta=eta)
    keys = sampling_loop.picture_keys(3, [0, 1])
    levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    times = [997, 831, 665, 499, 333, 167, 1, 0]
    x, expected = normal(0).astype(np.float64), []
    for i, (t, t_prev) in enumerate(zip(times, times[1:])):
        eps = toy_denoiser(x, float(t))
        x0 = (x - np.sqrt(1 - levels[t]) * eps) / np.sqrt(levels[t])
        sigma = eta * np.sqrt(
            (1 - levels[t_prev]) / (1 - levels[t]) * (1 - levels[t] / levels[t_prev])
        )
        noise = np.asarray(sampling_loop._normal(keys, i + 1, SHAPE[1:]), np.float64)
        x = (
            np.sqrt(levels[t_prev]) * x0
            + np.sqrt(1 - levels[t_prev] - sigma**2) * eps
            + sigma * noise
        )
        expected.append(x)
    final, after_each = sampling_loop.sample(
        stateless(lambda x, t, _: toy_denoiser(x, t)),
        jnp.asarray(normal(0)),
        table,
        keys=keys,
        trajectory=True,
    )
    assert table.steps == 7
    for ours, theirs in zip(after_each, expected, strict=True):
        assert np.abs(ours - theirs).max() < 3e-6 * np.abs(theirs).max()
    np.testing.assert_array_equal(final, after_each[-1])


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_step_constants_arrive_one_step_at_a_time(sampler):
    table = samplers.make_sampler(sampler, SD15, 4)
    constants = {"t": jnp.asarray(table.timesteps)}
    x = jnp.asarray(normal(0))
    a = sampling_loop.sample(
        stateless(lambda x, t, c: toy_denoiser(x, c["t"])), x, table, step_constants=constants
    )
    b = sampling_loop.sample(stateless(lambda x, t, c: toy_denoiser(x, t)), x, table)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_low_precision_output_keeps_the_state_in_float32(sampler):
    table = samplers.make_sampler(sampler, SD15, 3)
    result = sampling_loop.sample(
        stateless(lambda x, t, _: x.astype(jnp.bfloat16)),
        jnp.asarray(normal(0)),
        table,
        keys=sampling_loop.picture_keys(0, [0, 1]),
    )
    assert result.dtype == jnp.float32 and np.isfinite(result).all()


def test_noise_depends_on_seed_and_picture_index_alone():
    shape = (8, 8, 4)
    four = sampling_loop.initial_noise(sampling_loop.picture_keys(7, [0, 1, 2, 3]), shape)
    alone = sampling_loop.initial_noise(sampling_loop.picture_keys(7, [2]), shape)
    other = sampling_loop.initial_noise(sampling_loop.picture_keys(8, [2]), shape)
    np.testing.assert_array_equal(four[2], alone[0])
    assert np.abs(alone - other).max() > 0.5 and np.abs(four[1] - four[2]).max() > 0.5
    assert abs(float(four.mean())) < 0.15 and abs(float(four.std()) - 1) < 0.1
    keys = sampling_loop.picture_keys(7, [0, 1, 2, 3])
    assert np.abs(sampling_loop._normal(keys, 1, shape) - four).max() > 0.5


def test_missing_noise_and_unknown_predictions_are_errors():
    x = jnp.asarray(normal(0))
    with pytest.raises(ValueError, match="keys"):
        sampling_loop.sample(
            stateless(lambda x, t, _: x), x, samplers.make_sampler("ddim", SD15, 4, eta=1.0)
        )
    with pytest.raises(ValueError, match="prediction_type is"):
        sampling_loop.sample(
            stateless(lambda x, t, _: x),
            x,
            samplers.make_sampler("ddim", SD15, 4),
            prediction_type="x0",
        )
