"""Guidance as one batch of two halves equals two separate runs, and runs the control once."""

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.diffusion.guidance import text_guidance


def arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.standard_normal(shape, dtype=np.float32)) for shape in shapes]


LATENTS, TEXT, EMPTY = arrays((2, 4, 4, 3), (2, 7, 3), (2, 7, 3))
TIME = jnp.int32(500)


def unet(latents, timestep, text, residuals, constants):
    pooled = text["tokens"].mean(1)[:, None, None]
    extra = 0.0 if residuals is None else sum(residuals)
    return jnp.tanh(latents * pooled + extra) + constants


def test_equals_two_separate_passes_and_runs_control_once():
    seen = []

    def control(latents, timestep, constants):
        seen.append(latents.shape)
        return [latents * 2, latents - 1]

    denoise = text_guidance(unet, control, {"tokens": TEXT}, {"tokens": EMPTY}, 7.0)
    residuals = [LATENTS * 2, LATENTS - 1]
    a = unet(LATENTS, TIME, {"tokens": TEXT}, residuals, 0.5)
    b = unet(LATENTS, TIME, {"tokens": EMPTY}, residuals, 0.5)
    np.testing.assert_allclose(denoise(LATENTS, TIME, 0.5), b + 7 * (a - b), rtol=1e-5, atol=1e-5)
    assert seen == [LATENTS.shape]


def test_scale_one_is_the_plain_model_and_no_empty_text_runs_half_the_batch():
    shapes = []

    def recording(latents, *rest):
        shapes.append(latents.shape)
        return unet(latents, *rest)

    plain = unet(LATENTS, TIME, {"tokens": TEXT}, None, 0.5)
    one = text_guidance(recording, None, {"tokens": TEXT}, {"tokens": EMPTY}, 1.0)
    none = text_guidance(recording, None, {"tokens": TEXT}, None)
    np.testing.assert_allclose(one(LATENTS, TIME, 0.5), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(none(LATENTS, TIME, 0.5), plain)
    assert [s[0] for s in shapes] == [4, 2]


def test_a_traced_scale_needs_no_second_compilation():
    @jax.jit
    def run(scale):
        return text_guidance(unet, None, {"tokens": TEXT}, {"tokens": EMPTY}, scale)(LATENTS, TIME, 0.0)

    assert np.abs(run(jnp.float32(1)) - run(jnp.float32(3))).max() > 1e-3
    assert run._cache_size() == 1
