"""Guidance as one batch of two halves equals two separate runs, and runs the control once."""

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.diffusion.guidance import guided, text_guidance
from caphuman_jax.nn.blocks import repeated


def arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.standard_normal(shape, dtype=np.float32)) for shape in shapes]


LATENTS, TEXT, EMPTY = arrays((2, 4, 4, 3), (2, 7, 3), (2, 7, 3))
TIME = jnp.int32(500)


def unet(latents, timestep, text, residuals, constants):
    """Its text is that of all branches; latents, and residuals that the branches share, are of one."""
    pooled = text["tokens"].mean(1)[:, None, None]
    extra = jnp.zeros_like(latents) if residuals is None else sum(residuals)
    latents, extra = (repeated(x, pooled.shape[0]) for x in (latents, extra))
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

    def recording(latents, timestep, text, *rest):
        shapes.append(text["tokens"].shape)
        return unet(latents, timestep, text, *rest)

    plain = unet(LATENTS, TIME, {"tokens": TEXT}, None, 0.5)
    one = text_guidance(recording, None, {"tokens": TEXT}, {"tokens": EMPTY}, 1.0)
    none = text_guidance(recording, None, {"tokens": TEXT}, None)
    np.testing.assert_allclose(one(LATENTS, TIME, 0.5), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(none(LATENTS, TIME, 0.5), plain)
    assert [s[0] for s in shapes] == [4, 2]


def test_a_traced_scale_needs_no_second_compilation():
    @jax.jit
    def run(scale):
        return text_guidance(unet, None, {"tokens": TEXT}, {"tokens": EMPTY}, scale)(
            LATENTS, TIME, 0.0
        )

    assert np.abs(run(jnp.float32(1)) - run(jnp.float32(3))).max() > 1e-3
    assert run._cache_size() == 1


def test_residuals_that_differ_by_branch_are_one_batch():
    controls = lambda latents, *_: {"identity": [latents], "text": [3 * latents]}
    denoise = guided(
        unet, controls, [("identity", 0.25, {"tokens": EMPTY}), ("text", 0.75, {"tokens": TEXT})]
    )
    a, b = (
        unet(LATENTS, TIME, {"tokens": EMPTY}, [LATENTS], 0.0),
        unet(LATENTS, TIME, {"tokens": TEXT}, [3 * LATENTS], 0.0),
    )
    np.testing.assert_allclose(
        denoise(LATENTS, TIME, 0.0), 0.25 * a + 0.75 * b, rtol=1e-5, atol=1e-6
    )
