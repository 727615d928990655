"""AdamW and its learning rate."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine")
DECAYED = ("all", "matrices")


def learning_rate_schedule(
    name: str, peak: float, *, warmup: int, steps: int, end_ratio: float = 0.01
) -> optax.Schedule:
    """Step (from 0) → learning rate: linear from 0 over `warmup` steps, then `name`.

    Args:
        name: "constant", or "cosine" down to `end_ratio` · `peak` at step `steps`.
        peak: the learning rate after the warm-up.
        warmup: steps, may be 0.
        steps: of the whole run.
        end_ratio: the last learning rate of "cosine" as a share of `peak`.
    """
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, warmup, max(steps, warmup + 1), peak * end_ratio
        )
    constant = optax.constant_schedule(peak)
    if not warmup:
        return constant
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), constant], [warmup])


def make_adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    decay: str = "all",
    clip: float = 0.0,
    multipliers: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW.

    Args:
        learning_rate: a number or a schedule.
        b1, b2: decay of the two moments.
        weight_decay: decoupled, times the learning rate.
        decay: what is decayed, "all" or "matrices" (no norms, no biases).
        clip: largest global norm of the gradient, 0 for no clipping.
        multipliers: a tree like the parameters with factors of the learning rate
            (`trainable.rates`).
    """
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    mask = None if decay == "all" else matrices
    parts = [_clip_by_global_norm(clip)] if clip else []
    parts.append(optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask))
    if multipliers is not None:
        # AdamW's whole change, decay included, is proportional to the learning rate.
        scale = lambda update, factor: update if factor == 1 else update * jnp.float32(factor)
        parts.append(
            optax.stateless(lambda updates, _: jax.tree.map(scale, updates, dict(multipliers)))
        )
    return optax.chain(*parts)


def global_norm(tree: Any) -> jax.Array:
    """L2 norm of all leaves together, as `optax.tree.norm`'s."""

    def grouped(leaves):
        # Every reduction is a program of its own on a CPU: those of a step's norms took half of
        # the time that XLA needs to compile it.
        groups = collections.defaultdict(list)
        for leaf in leaves:
            groups[leaf.shape].append(leaf)
        return sum(_sum_of_squares(jnp.stack(group)) for group in groups.values())

    one_by_one = lambda leaves: sum(map(_sum_of_squares, leaves))
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(jax.lax.platform_dependent(leaves, cpu=grouped, default=one_by_one))


@jax.jit
def _sum_of_squares(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(values), dtype=jnp.float32)


def _clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with the norm above."""

    def clip(updates, _):
        norm = global_norm(updates)
        return jax.tree.map(lambda g: jnp.where(norm < largest, g, g / norm * largest), updates)

    return optax.stateless(clip)


def per_network(
    optimizers: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Each network of {network: parameters} with an optimizer of its own."""

    def init(params):
        return {name: optimizers[name].init(params[name]) for name in params}

    def update(updates, state, params=None):
        assert params is not None, "weight decay needs the parameters"
        done = {
            name: optimizers[name].update(updates[name], state[name], params[name])
            for name in params
        }
        return {k: v[0] for k, v in done.items()}, {k: v[1] for k, v in done.items()}

    return optax.GradientTransformation(init, update)
