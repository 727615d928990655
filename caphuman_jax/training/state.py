"""The training state: everything that a step changes and that a checkpoint keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = dict[str, Any]
"""{network: nested dicts of arrays}."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; every leaf is an array.

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
