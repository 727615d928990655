"""The training step: it learns, repeats itself, and does not care how many devices share the work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import DataError
from caphuman_jax.training import diffusion, loop, sharding


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True))


def test_stopped_and_resumed_is_the_run_that_was_not(tiny, training, data, vae_params, tmp_path):
    _, straight = loop.train(tiny, training, vae_params, data, tmp_path / "a", log=lambda line: None)
    # Stopped after 3 of 6 steps by a save in the middle and a fresh start from that checkpoint.
    half = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        loop.train(tiny, training, vae_params, data, half, save_every=3, log_every=1, log=interrupt_after("step 4"))
    assert int(straight["step"]) == 6
    lines = []
    _, resumed = loop.train(tiny, training, vae_params, data, half, log=lines.append)
    assert "resumed at step 3" in lines[0]
    assert leaves_equal(straight, resumed)


def interrupt_after(text):
    def log(line):
        if text in line:
            raise KeyboardInterrupt
    return log


def test_other_settings_are_refused(tiny, training, data, vae_params, tmp_path):
    loop.train(tiny, dataclasses.replace(training, steps=1), vae_params, data, tmp_path, log=lambda line: None)
    with pytest.raises(DataError, match="other settings"):
        loop.train(tiny, training, vae_params, data, tmp_path, log=lambda line: None)


def test_one_and_eight_devices_agree(tiny, training, data, vae_params):
    results = []
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        graphs, state = diffusion.init_state(tiny, training)
        place = sharding.replicated(mesh)
        step = jax.jit(diffusion.make_step(tiny, graphs, training, mesh))
        state, metrics = step(jax.device_put(state, place), jax.device_put({"vae": vae_params}, place), loop.place_data(data, mesh))
        results.append({k: float(v) for k, v in metrics.items()})
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=2e-3), name


def test_every_trained_parameter_gets_a_gradient_once_the_zero_convolutions_have_moved(tiny, training, data, vae_params):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    training = dataclasses.replace(training, steps=100, drop_identity=0.0, late_identity=0.0, drop_control=0.0)
    graphs, state = diffusion.init_state(tiny, training)
    before = jax.device_get(state["params"])
    step = jax.jit(diffusion.make_step(tiny, graphs, training, mesh))
    resident = loop.place_data(data, mesh)
    for _ in range(6):
        state, metrics = step(state, {"vae": vae_params}, resident)
        assert np.isfinite(float(metrics["loss"]))
    after = jax.device_get(state["params"])
    flat = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after))
    # The bias of attention keys changes no softmax; everything else must have moved.
    still = [jax.tree_util.keystr(path) for path, moved in flat if moved == 0]
    assert all("key" in name and "bias" in name for name in still), still


def test_batches_pair_colour_words_with_colour(tiny, training, data):
    cfg = dataclasses.replace(training, batch=64, to_grey=0.5, drop_text=0.0)
    marked = dict(data, captions=np.broadcast_to(np.array([1, 2], np.int32)[None, None, :, None], data["captions"].shape))
    placed = loop.place_data(marked, sharding.make_mesh(devices=jax.devices()[:1]))
    batch = jax.jit(lambda d, k: diffusion.draw(d, k, cfg, tiny.image_size))(placed, jax.random.key(0))
    pictures = np.asarray(batch["pictures"])
    grey = np.abs(pictures - pictures.mean(-1, keepdims=True)).max((1, 2, 3)) < 1e-3
    assert 0.2 < grey.mean() < 0.95
    np.testing.assert_array_equal(np.asarray(batch["token_ids"])[:, 0] == 2, grey)
    assert np.abs(pictures).max() <= 1.001 and batch["hints"].shape == (64, 32, 32, 9)
    assert jnp.abs(batch["hints"][..., :3]).max() <= 1.45 and batch["hints"][..., 3:].min() >= 0
