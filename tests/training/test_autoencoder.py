"""The autoencoder's losses against plain NumPy, and a run of a few steps."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.runtime import sharding
from caphuman_jax.training import loop
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


@pytest.fixture(scope="module")
def photos():
    y, x = np.mgrid[:64, :64]
    phases = np.random.default_rng(0).random((6, 3)) * 6
    wave = lambda phase: 127 + 90 * np.sin(x / 9 + phase) * np.cos(y / 11 + phase)
    return np.stack([np.stack([wave(p) for p in row], -1) for row in phases]).astype(np.uint8)


def make_recipe(tiny, photos, mesh, **changes):
    cfg = autoencoder.AutoencoderTraining(
        **{"batch_size": 4, "size": 32, "warmup_steps": 5, "learning_rate": 3e-3, **changes}
    )
    covered = np.tile(np.array([0, 0, 64, 64], np.float32), (6, 1))
    return autoencoder.AutoencoderRecipe(tiny.vae, cfg, photos, covered, mesh=mesh)


def run(recipe, folder, mesh, log=lambda line: None, **kinds):
    cfg = loop.LoopConfig(**{"tensorboard": False, "log_every": 1, "save_every": 0, **kinds})
    return loop.run(recipe, None, cfg, folder, mesh, log=log)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_short_run_learns_and_the_latents_can_be_centered(tiny, photos, tmp_path):
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    recipe = make_recipe(
        tiny,
        photos,
        mesh,
        steps=60,
        adversarial_weight=0.3,
        adversarial_start_step=40,
        adversarial_ramp_steps=10,
    )
    state = run(recipe, tmp_path, mesh).state
    l1 = [line["l1"] for line in lines(tmp_path)]
    assert min(l1[-5:]) < 0.6 * l1[0]
    assert set(state.params) == {"vae", "discriminator"} and set(state.ema) == {"vae"}
    params, graph = jax.device_get(state.ema["vae"]), recipe._graphs["vae"]
    centered, vae_cfg = autoencoder.center_latents(graph, params, tiny.vae, photos, 32)
    images = jnp.asarray(photos[:, 16:48, 16:48] / 127.5 - 1, jnp.float32)

    def round_trip(p):
        vae = nnx.merge(graph, jax.tree.map(jnp.asarray, p))
        mean, _ = vae.encode(images)
        return mean, vae.decode(mean)

    (_, before), (latents, after) = round_trip(params), round_trip(centered)
    np.testing.assert_allclose(np.asarray(before), np.asarray(after), atol=0.05)  # bfloat16 compute
    assert np.abs(np.asarray(latents).mean((0, 1, 2)) * vae_cfg.scaling_factor).max() < 0.02
    assert dataclasses.replace(vae_cfg, scaling_factor=1.0) == tiny.vae


def test_a_stopped_run_is_saved_and_resumes_to_the_same_weights(tiny, photos, tmp_path):
    # Other signals: test_preemption.py.
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    recipe = make_recipe(tiny, photos, mesh, steps=6)
    said = []

    def log(line):
        said.append(line)
        if line.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(recipe, tmp_path / "a", mesh, log)
    assert stopped.exit_code == 75 and stopped.step < 6
    assert f"saved at step {stopped.step} of 6" in said[-1]
    resumed = run(recipe, tmp_path / "a", mesh, said.append)
    whole = run(recipe, tmp_path / "b", mesh)
    assert f"resumed at step {stopped.step}" in said and resumed.exit_code == 0
    same = jax.tree.map(lambda a, b: (a == b).all(), resumed.state, whole.state)
    assert all(jax.tree.leaves(same))


def test_a_nan_stops_the_run_with_its_batch(tiny, photos, tmp_path):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    recipe = make_recipe(tiny, photos, mesh, steps=6)
    recipe.train_step = lambda state, frozen, rows: (
        dataclasses.replace(state, step=state.step + 1),
        {"loss": jnp.float32(jnp.nan)},
    )
    result = run(recipe, tmp_path, mesh)
    assert result.exit_code == 1 and result.state is None
    with np.load(tmp_path / f"nan-{result.step}" / "batch-0.npz") as batch:
        assert batch["images"].shape == (4, 32, 32, 3) and np.isfinite(batch["images"]).all()
    assert not list((tmp_path / "checkpoints").iterdir())
