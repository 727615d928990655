"""The autoencoder's losses against plain NumPy, and a run of a few steps."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla_flags
from flax import nnx
from safetensors.numpy import load_file

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


SMALL_MINI = """
from tiny_model import TINY

from caphuman_jax.configs import mini


def get_config():
    config = mini.get_config()
    config.model = TINY.to_dict()
    config.autoencoder.update({"steps": 60, "batch_size": 4, "size": 32, "warmup_steps": 5})
    config.loop.update({"log_every": 1, "save_every": 0, "tensorboard": False})
    return config
"""


@pytest.mark.slow
def test_a_signal_in_the_middle_of_the_first_stage(tmp_path):
    """SIGTERM and Ctrl-C after a logged step of the autoencoder, in the real program: the exit code
    and the checkpoint that docs/training.md promises; the same command resumes to the same bits.
    """
    from records_standin import write_standin

    records = write_standin(tmp_path / "records", 6, test=2, size=64, stored=88)
    (tmp_path / "small.py").write_text(SMALL_MINI)
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {
        "XLA_FLAGS": xla_flags.ONE_DEVICE,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": tests,
    }
    program = "import sys; from caphuman_jax.cli.app import main; sys.exit(main())"
    arguments = ["train", "--config", tmp_path / "small.py", f"--config.data={records}"]

    def train(workdir, until, number):
        """Sends a signal once a line contains `until`; (exit code, lines)."""
        command = [sys.executable, "-c", program, *arguments, "--workdir", workdir]
        with subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            said = []
            for line in process.stdout:
                if until in line and not any(until in other for other in said):
                    process.send_signal(number)
                said.append(line)
        return process.returncode, said

    def saved(workdir):
        folder = workdir / "autoencoder" / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir())

    run, whole = tmp_path / "run", tmp_path / "whole"
    for step, number, code, word in (
        (3, signal.SIGTERM, 75, "asked to stop"),
        (20, signal.SIGINT, 130, "interrupted"),
    ):
        found, said = train(run, f"step {step}/60 ", number)
        assert found == code, "".join(said)
        reached = int(re.search(rf"{word}: saved at step (\d+) of 60; rerun", said[-1])[1])
        assert step <= reached < 60 and saved(run)[-1:] == [reached]
        assert not (run / "autoencoder" / "model").exists()
    # The second stage is not of interest here.
    for folder in (run, whole):
        code, said = train(folder, "autoencoder/model after 60 steps", signal.SIGKILL)
        assert code == -signal.SIGKILL, "".join(said)
    after = {
        folder: {
            line["step"]: line["loss"] for line in lines(folder / "autoencoder") if "loss" in line
        }
        for folder in (run, whole)
    }
    assert after[run] == after[whole] and set(after[whole]) == set(range(1, 61))
    weights = [
        load_file(folder / "autoencoder" / "model" / "vae.safetensors") for folder in (run, whole)
    ]
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())


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
