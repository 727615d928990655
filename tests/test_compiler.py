"""Layouts and options for accelerators, tried on this machine's CPU as if it were a GPU."""

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
from caphuman_jax.training.recipe import Recipe
from caphuman_jax.training.step import TrainState, gradients_of, make_train_step

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


class Convolving(Recipe):
    """A 3×3 convolution that learns to copy, large enough for its optimizer to be split."""

    name, batch_size, settings = "convolving", 16, {}

    def __init__(self, steps):
        self.steps, self.optimizer = steps, optax.adamw(1e-2)
        self.param_shapes = jax.eval_shape(self.init_params)
        self.frozen = {"base": {"conv": {"kernel": np.full((3, 3, 64, 64), 0.01, np.float32)}}}
        self._step = make_train_step(
            lambda frozen, rows, keys, step: (rows,),
            gradients_of(self.loss),
            self.optimizer,
            keys=lambda step: step,
        )

    def init_params(self):
        kernel = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32) / 24
        return {"net": {"conv": {"kernel": kernel}}}

    def init_state(self, params):
        return TrainState.create(params, self.optimizer, ())

    def train_step(self, state, frozen, rows):
        return self._step(state, frozen, rows)

    def loss(self, params, frozen, rows):
        convolve = lambda kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = rows["x"][:, :64].reshape(-1, 1, 1, 64)
        ours = convolve(params["net"]["conv"]["kernel"])
        return jnp.mean(jnp.square(ours - convolve(frozen["base"]["conv"]["kernel"]) - x)), {}


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
        recipe = Convolving(steps)
        return loop.run(
            recipe,
            tiny_recipe.Numbered(16),
            cfg,
            folder,
            sharding.make_mesh(cfg.fsdp, jax.devices()[:2]),
            log=lambda line: None,
        ).state

    kernel = lambda state: state.params["net"]["conv"]["kernel"]
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
            for leaf in jax.tree.leaves(state.opt_state)
            if leaf.ndim == 4
        )
        np.testing.assert_allclose(kernel(state), kernel(plain), atol=1e-6)
