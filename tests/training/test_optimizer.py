"""The norm of a tree and clipping by it are Optax's."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from caphuman_jax.runtime import sharding
from caphuman_jax.training.optimizer import global_norm, make_adamw


def tree(seed=0):
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"a": (8, 3), "b": (8, 3), "c": (16,), "d": (), "e": (8, 4, 2), "f": (16,)}
    return {name: np.float32(draw(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("devices", [1, 8])
def test_the_norm_of_all_leaves(devices):
    mesh = sharding.make_mesh(devices, jax.devices()[:devices])
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    place = lambda leaf: jax.device_put(leaf, split if leaf.ndim else sharding.replicated(mesh))
    placed = jax.tree.map(place, tree())
    np.testing.assert_allclose(jax.jit(global_norm)(placed), optax.tree.norm(tree()), rtol=1e-6)


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_steps_are_those_of_optax(clip):
    """Of its own chain, and with its state, so that checkpoints stay what they are."""
    ours = make_adamw(0.1, weight_decay=0.01, clip=clip)
    theirs = optax.chain(optax.clip_by_global_norm(clip), optax.adamw(0.1, weight_decay=0.01))
    params, states = tree(), [ours.init(tree()), theirs.init(tree())]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for step in range(3):
        updates = []
        for number, optimizer in enumerate((ours, theirs)):
            with jax.numpy_dtype_promotion("standard"):
                update, states[number] = optimizer.update(tree(step), states[number], params)
            updates.append(update)
        for a, b in zip(*map(jax.tree.leaves, updates), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_only_on_a_cpu_leaves_of_a_shape_are_put_together():
    """Elsewhere that would copy all parameters."""
    traced = jax.jit(global_norm).trace(tree())
    programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")}
    assert programs["cpu"].count("stablehlo.concatenate") == 2
    assert "stablehlo.concatenate" not in programs["tpu"]
