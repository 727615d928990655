"""One training step, the same for every recipe: the state before it, gradients, update, moving
average, metrics, the state after it.

Everything random in a step is a function of (seed, step, number of the picture in the global
batch), so neither the number of devices nor that of micro-batches changes a result, and a run that
is stopped and resumed is the run that was not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from caphuman_jax.runtime import sharding
from caphuman_jax.training.optimizer import global_norm

Tree = dict[str, Any]
"""{network: nested dicts of arrays}."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes and that a checkpoint keeps. A pytree; every leaf is an array.

    Attributes:
        step: int32 scalar, the number of steps taken so far.
        params: trained parameters, float32.
        opt_state: Optax's state for `params`.
        ema: moving average of `params`, or of some of its networks; {} where none is kept.
    """

    step: jax.Array
    params: Tree
    opt_state: Any
    ema: Tree

    @classmethod
    def create(
        cls,
        params: Tree,
        optimizer: optax.GradientTransformation,
        averaged: tuple[str, ...] | None = None,
    ) -> TrainState:
        """The state at step 0. Can be compiled, so that each leaf is created where it belongs.

        Args:
            params: {network: parameters}.
            optimizer: what updates them.
            averaged: networks with a moving average, None for all of them, () for none.
        """
        names = tuple(params) if averaged is None else averaged
        return cls(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            ema={name: jax.tree.map(jnp.copy, params[name]) for name in names},
        )

    @property
    def eval_params(self) -> Tree:
        """The parameters to evaluate and export: the average where there is one."""
        return self.ema or self.params


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """Exponential moving average of parameters, faster in the beginning, when nothing is learned.

    The decay of update n is min(decay, (1 + n) / (10 + n)).

    Attributes:
        decay: in [0, 1).
        first: n of the first update.
    """

    decay: float
    first: int = 1

    def update(self, ema: Tree, params: Tree, step: jax.Array) -> Tree:
        """The average after step `step` (from 0) gave `params`, for the networks in `ema`."""
        n = jnp.asarray(step + self.first, jnp.float32)
        decay = jnp.minimum(jnp.float32(self.decay), (1 + n) / (10 + n))
        params = {name: params[name] for name in ema}
        return jax.tree.map(lambda e, p: e * decay + p * (1 - decay), ema, params)


Metrics = dict[str, jax.Array]
"""float32 scalars, "loss" among them; or vectors NAME of sums over pictures together with
NAME_count, which are reported as their quotients."""

Inputs = Callable[[Tree, dict, Any, jax.Array], tuple]
"""(frozen, rows, keys, step) → the arguments of the loss after `params` and `frozen`."""

Gradients = Callable[..., tuple[Metrics, Tree]]
"""(params, frozen, *inputs) → (metrics, gradients of the parameters)."""


def gradients_of(loss: Callable[..., tuple[jax.Array, Metrics]]) -> Gradients:
    """The gradients of a loss (params, frozen, *inputs) → (scalar, metrics)."""
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def gradients(params, frozen, *inputs):
        (total, metrics), grads = value_and_grad(params, frozen, *inputs)
        return {"loss": total, **metrics}, grads

    return gradients


def make_train_step(
    inputs: Inputs,
    gradients: Gradients,
    optimizer: optax.GradientTransformation,
    *,
    keys: Callable[[jax.Array], Any],
    accumulate: int = 1,
    average: MovingAverage | None = None,
    learning_rate: optax.Schedule | None = None,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Tree, dict], tuple[TrainState, Metrics]]:
    """The step (state, frozen, rows) → (state, metrics); pure, can be compiled.

    Metrics are those of the loss and the global L2 norms of the gradient (before clipping), of the
    update and of the parameters after it.

    Args:
        inputs: makes the arguments of the loss of a batch, or of a micro-batch.
        gradients: of the loss, see `gradients_of`.
        optimizer: of `state.params`.
        keys: step → random keys; with `accumulate` > 1 one for each picture of the global batch.
        accumulate: number of micro-batches per batch, run in sequence.
        average: of the parameters; None where none is kept.
        learning_rate: what is reported as the metric of that name.
        mesh: devices over which batches are split, None for one device.
    """
    constrain = sharding.constrain_batch(mesh)

    def batch_gradients(params, frozen, rows, keys, step):
        return gradients(params, frozen, *inputs(frozen, rows, keys, step))

    def accumulated_gradients(params, frozen, rows, keys, step):
        # Picture i goes to micro-batch i % accumulate: each device splits its own part, and no
        # picture travels.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (rows, keys)
        )

        def part_gradients(part):
            rows, keys = constrain(part)
            return batch_gradients(params, frozen, rows, keys, step)

        shapes = jax.eval_shape(part_gradients, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        add = lambda total, part: (jax.tree.map(jnp.add, total, part_gradients(part)), None)
        (metrics, grads), _ = jax.lax.scan(add, zeros, parts)
        share = jnp.float32(1 / accumulate)
        metrics = {name: v if v.ndim else v * share for name, v in metrics.items()}
        return metrics, jax.tree.map(lambda g: g * share, grads)

    def train_step(state: TrainState, frozen: Tree, rows: dict) -> tuple[TrainState, Metrics]:
        compute = batch_gradients if accumulate == 1 else accumulated_gradients
        metrics, grads = compute(state.params, frozen, rows, keys(state.step), state.step)
        # Optax itself relies on promotion between integer counts and weak floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Tree, optax.apply_updates(state.params, updates))
        ema = average.update(state.ema, params, state.step) if average else state.ema
        metrics["grad_norm"] = global_norm(grads)
        metrics["update_norm"] = global_norm(updates)
        metrics["param_norm"] = global_norm(params)
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step
