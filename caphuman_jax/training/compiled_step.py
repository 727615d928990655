"""A recipe's step as a compiled program over a mesh, and the state it starts from."""

from __future__ import annotations

from typing import Any, cast

import jax
from jax.sharding import Mesh, NamedSharding

from caphuman_jax.runtime import compiler, flops, sharding
from caphuman_jax.training.recipe import Recipe
from caphuman_jax.training.step import TrainState


def init_sharded_state(recipe: Recipe, shardings: TrainState) -> TrainState:
    """The state at step 0, each leaf created where it belongs."""
    params = sharding.place(recipe.init_params(), shardings.params)
    with jax.set_mesh(cast(Mesh, cast(NamedSharding, shardings.step).mesh)):
        return jax.jit(
            recipe.init_state,
            out_shardings=compiler.formats(recipe.abstract_state(), shardings),
            donate_argnums=0,
        )(params)


def compile_step(recipe: Recipe, mesh, mode: str, frozen, rows, options: dict | None = None):
    """The compiled step (state, frozen, rows) → (state, metrics); see `lower_step`.

    Args:
        options: of XLA, in addition to the platform's.
    """
    platform = compiler.platform_of(mesh.devices.flat[0])
    return lower_step(recipe, mesh, mode, frozen, rows).compile(
        compiler_options={**(compiler.options(platform) or {}), **(options or {})} or None
    )


def lower_step(recipe: Recipe, mesh, mode: str, frozen, rows):
    """The step over the mesh, not compiled yet; the state is donated.

    Args:
        recipe: whose step.
        mesh: all devices.
        mode: of sharding, one of `sharding.MODES`.
        frozen: the recipe's frozen trees, arrays or their shapes.
        rows: a global batch, arrays or their shapes.
    """
    shapes = recipe.abstract_state()
    state = compiler.formats(shapes, sharding.state_shardings(mesh, shapes, mode))
    fixed = compiler.formats(frozen, sharding.frozen_shardings(mesh, frozen, mode))
    by_batch = jax.tree.map(lambda _: sharding.by_batch(mesh), rows)
    step = jax.jit(
        recipe.train_step,
        in_shardings=(state, fixed, by_batch),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(shapes, *shapes_of((frozen, rows)))


def count_flops(recipe: Recipe, mesh, frozen, rows) -> int:
    """Operations of a step over all devices, counted on what is traced: a compiler's count leaves
    out what it calls libraries for, on a GPU nearly all.
    """
    with jax.set_mesh(mesh):
        return flops.count(recipe.train_step, recipe.abstract_state(), *shapes_of((frozen, rows)))


def shapes_of(tree: Any) -> Any:
    """A tree of arrays as `jax.ShapeDtypeStruct`s; those of shapes stay."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
