"""The autoencoder's losses against plain NumPy, and a run of a few steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.runtime import sharding
from caphuman_jax.training.recipes import autoencoder


def test_reconstruction_loss_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 6, 5, 3)).astype(np.float32)
    valid = np.ones((1, 6, 5, 1), np.float32)
    expected = np.abs(a - b).mean()
    for axis in (1, 2):
        expected += 0.5 * np.abs(np.diff(a, axis=axis) - np.diff(b, axis=axis)).mean()
    ours = autoencoder.reconstruction_loss(jnp.asarray(a), jnp.asarray(b), jnp.asarray(valid), 0.5)
    np.testing.assert_allclose(float(ours), expected, rtol=1e-5)


def test_padding_does_not_count():
    a = np.zeros((1, 8, 8, 3), np.float32)
    b = a.copy()
    b[:, :, 5:] = 1.0
    valid = np.ones((1, 8, 8, 1), np.float32)
    valid[:, :, 5:] = 0
    assert (
        float(
            autoencoder.reconstruction_loss(jnp.asarray(a), jnp.asarray(b), jnp.asarray(valid), 1.0)
        )
        == 0.0
    )


@pytest.mark.slow
def test_a_short_run_learns_and_the_latents_can_be_centered(tiny):
    y, x = np.mgrid[:64, :64]
    phases = np.random.default_rng(0).random((6, 3)) * 6
    pictures = np.stack(
        [
            np.stack([127 + 90 * np.sin(x / 9 + p) * np.cos(y / 11 + p) for p in row], -1)
            for row in phases
        ]
    ).astype(np.uint8)
    covered = np.tile(np.array([0, 0, 64, 64], np.float32), (6, 1))
    cfg = autoencoder.AutoencoderTraining(
        steps=60,
        batch=4,
        size=32,
        warmup=5,
        learning_rate=3e-3,
        adversarial_weight=0.3,
        adversarial_start=40,
        adversarial_ramp=10,
    )
    lines = []
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    graph, params, _ = autoencoder.train(
        cfg, tiny.vae, pictures, covered, mesh=mesh, log=lines.append
    )
    l1 = [float(line.split(" l1 ")[1].split()[0]) for line in lines]
    assert min(l1[-5:]) < 0.6 * l1[0]
    params = jax.device_get(nnx.to_pure_dict(params))
    centered, vae_cfg = autoencoder.center_latents(graph, params, tiny.vae, pictures, 32)
    images = jnp.asarray(pictures[:, 16:48, 16:48] / 127.5 - 1, jnp.float32)

    def round_trip(p):
        vae = nnx.merge(graph, jax.tree.map(jnp.asarray, p))
        mean, _ = vae.encode(images)
        return mean, vae.decode(mean)

    (_, before), (latents, after) = round_trip(params), round_trip(centered)
    np.testing.assert_allclose(np.asarray(before), np.asarray(after), atol=0.05)  # bfloat16 compute
    assert np.abs(np.asarray(latents).mean((0, 1, 2)) * vae_cfg.scale).max() < 0.02
    assert dataclasses.replace(vae_cfg, scaling_factor=1.0) == tiny.vae
