"""Guidance as one batch of branches equals separate predictions; rescale against Diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from caphuman_jax.diffusion.guidance import (
    BRANCHES,
    branch_weights,
    concatenated_or_shared,
    guided,
    rescale_guidance,
)


def arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.standard_normal(shape, dtype=np.float32)) for shape in shapes]


LATENTS, *SEEN = arrays((2, 4, 4, 3), *[(1, 1, 1, 3)] * 4)
SEEN = dict(zip(BRANCHES, SEEN))
TIME = jnp.int32(500)


def alone(branch, latents):
    return jnp.tanh(latents * SEEN[branch])


class Predict:
    def __init__(self):
        self.asked = []

    def __call__(self, branches, latents, timestep, step, carry):
        self.asked.append(branches)
        return jnp.concatenate([alone(branch, latents) for branch in branches]), carry + 1


@pytest.mark.parametrize("scales", [(7.0,), (7.0, 2.0, 1.5), (1.0,)])
def test_is_the_sum_of_separate_predictions_of_one_batch(scales):
    predict, (text, identity, head) = Predict(), (*scales, 1.0, 1.0)[:3]
    made, carry = guided(predict, branch_weights(*scales))(LATENTS, TIME, None, 0)
    none, by_head, by_identity, by_text = (alone(branch, LATENTS) for branch in BRANCHES)
    expected = (
        none
        + head * (by_head - none)
        + identity * (by_identity - by_head)
        + text * (by_text - by_identity)
    )
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    assert carry == 1
    wanted = {(7.0,): ("identity", "text"), (1.0,): ("text",)}
    assert predict.asked == [wanted.get(scales, tuple(BRANCHES))]


def test_limited_guidance_takes_the_text_alone_elsewhere():
    weights = branch_weights(7.0)
    run = lambda on: guided(Predict(), weights, rescale=0.5, limited=True)(
        LATENTS, TIME, {"guided": jnp.asarray(on)}, 0
    )
    np.testing.assert_allclose(run(False)[0], alone("text", LATENTS), rtol=1e-5)
    everywhere = guided(Predict(), weights, rescale=0.5)(LATENTS, TIME, None, 0)[0]
    np.testing.assert_allclose(run(True)[0], everywhere, rtol=1e-5)
    assert run(True)[1] == run(False)[1] == 1


def test_traced_scales_need_no_second_compilation():
    @jax.jit
    def run(scale):
        return guided(Predict(), {"identity": 1 - scale, "text": scale})(LATENTS, TIME, None, 0)[0]

    assert np.abs(run(jnp.float32(1)) - run(jnp.float32(3))).max() > 1e-3
    assert run._cache_size() == 1


def test_what_branches_share_is_not_repeated():
    shared, other = [LATENTS], [2 * LATENTS]
    assert concatenated_or_shared([shared, shared]) is shared
    (joined,) = concatenated_or_shared([shared, other])
    np.testing.assert_array_equal(joined, jnp.concatenate([LATENTS, 2 * LATENTS]))


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_equals_diffusers(phi):
    with_text, without = (
        np.random.default_rng(0).standard_normal((2, 3, 8, 6, 4), dtype=np.float32) + 0.3
    )
    guided = without + 7 * (with_text - without)
    guided[1] *= 3  # each image has its own deviation
    expected = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(with_text), phi).numpy()
    ours = rescale_guidance(jnp.asarray(guided), jnp.asarray(with_text), jnp.float32(phi))
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)
    if phi == 1:
        np.testing.assert_allclose(
            np.std(ours, axis=(1, 2, 3)), np.std(with_text, axis=(1, 2, 3)), rtol=1e-5
        )
