"""Layouts and options for accelerators, tried on this machine's CPU as if it were a GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_recipe
from jax.experimental.layout import Format
from jax.sharding import SingleDeviceSharding

from caphuman_jax.runtime import compiler, sharding
from caphuman_jax.training import loop
from caphuman_jax.training.optimizer import update
from caphuman_jax.training.recipe import Recipe

OUTPUTS_FIRST = (3, 0, 1, 2)


@pytest.fixture
def as_gpu(monkeypatch):
    monkeypatch.setattr(compiler, "platform_of", lambda device: "gpu")


def tree():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    return {
        "conv": {"kernel": draw(3, 3, 4, 8), "bias": draw(8)},
        "linear": {"kernel": draw(4, 8)},
        "data": {"hints": draw(2, 4, 4, 9)},
    }


def test_convolution_kernels_lie_with_their_outputs_first_on_a_gpu(as_gpu):
    before = tree()
    after = compiler.laid_out(before)
    layouts = jax.tree.map(
        lambda leaf: leaf.format.layout.major_to_minor,
        after,
        is_leaf=lambda x: isinstance(x, jax.Array),
    )
    assert layouts["conv"]["kernel"] == OUTPUTS_FIRST
    assert layouts["linear"]["kernel"] == (0, 1) and layouts["data"]["hints"] == (0, 1, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert compiler.laid_out(after)["conv"]["kernel"] is after["conv"]["kernel"]


def test_elsewhere_nothing_is_moved():
    before = tree()
    assert compiler.laid_out(before)["conv"]["kernel"] is before["conv"]["kernel"]
    where = SingleDeviceSharding(jax.devices()[0])
    assert not any(
        isinstance(leaf, Format)
        for leaf in jax.tree.leaves(compiler.formats(before, jax.tree.map(lambda _: where, before)))
    )
    assert (
        compiler.options("cpu") is None
        and compiler.options("tpu") is None
        and compiler.options("gpu")
    )


def test_the_compiler_knows_its_options():
    """An option that a new version has dropped would stop every program on a GPU."""
    program = jax.jit(lambda x: x + 1).lower(jnp.ones(2))
    for platform in compiler.OPTIONS:
        program.compile(compiler_options=compiler.options(platform))


def convolving() -> Recipe:
    """A 3×3 convolution that learns to copy, large enough for its optimizer to be split."""
    optimizer, frozen = (
        optax.adamw(1e-2),
        {"base": {"conv": {"kernel": np.full((3, 3, 64, 64), 0.01, np.float32)}}},
    )
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

    def step(state, frozen, batch):
        def loss_fn(params):
            x = batch["x"][:, :64].reshape(-1, 1, 1, 64)
            return jnp.mean(
                jnp.square(
                    convolve(x, params["net"]["conv"]["kernel"])
                    - convolve(x, frozen["base"]["conv"]["kernel"])
                    - x
                )
            )

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        params, opt = update(optimizer, grads, state["opt"], state["params"])
        return {"params": params, "opt": opt, "ema": {}, "step": state["step"] + 1}, {"loss": loss}

    init = lambda: {
        "net": {
            "conv": {
                "kernel": np.random.default_rng(0)
                .standard_normal((3, 3, 64, 64))
                .astype(np.float32)
                / 24
            }
        }
    }
    begin = lambda params: {
        "params": params,
        "opt": optimizer.init(params),
        "ema": {},
        "step": jnp.int32(0),
    }
    return Recipe(
        name="convolving",
        batch=16,
        steps=6,
        settings={},
        init_params=init,
        shapes=jax.eval_shape(init),
        begin=begin,
        step=step,
        frozen=frozen,
        batch_shapes={
            "x": jax.ShapeDtypeStruct((16, 128), jnp.float32),
            "index": jax.ShapeDtypeStruct((16,), jnp.int32),
        },
    )


@pytest.mark.parametrize("mode", ["replicated", "zero", "fsdp"])
def test_training_with_other_layouts_is_the_same_training(monkeypatch, tmp_path, mode):
    """Steps, checkpoints, and going on from one that was written with the default layouts, on two
    devices.
    """

    def run(folder, steps):
        cfg = loop.LoopConfig(
            tensorboard=False,
            log_every=4,
            save_every=3,
            sharding=mode,
            fsdp=2 if mode == "fsdp" else 1,
        )
        recipe = dataclasses.replace(convolving(), steps=steps)
        return loop.run(
            recipe,
            tiny_recipe.Numbered(16),
            cfg,
            folder,
            sharding.make_mesh(cfg.fsdp, jax.devices()[:2]),
            log=lambda line: None,
        ).state

    kernel = lambda state: state["params"]["net"]["conv"]["kernel"]
    plain = run(tmp_path / "plain", 6)
    run(tmp_path / "changed", 3)
    monkeypatch.setattr(compiler, "platform_of", lambda device: "gpu")
    resumed, whole = run(tmp_path / "changed", 6), run(tmp_path / "whole", 6)
    for state in (resumed, whole):
        assert (
            kernel(state).format.layout.major_to_minor == OUTPUTS_FIRST
            and kernel(plain).format.layout.major_to_minor != OUTPUTS_FIRST
        )
        assert all(
            leaf.format.layout.major_to_minor == OUTPUTS_FIRST
            for leaf in jax.tree.leaves(state["opt"])
            if leaf.ndim == 4
        )
        np.testing.assert_allclose(kernel(state), kernel(plain), atol=1e-6)
