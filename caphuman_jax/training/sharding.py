"""Where arrays live: a ('data', 'fsdp') mesh over all devices, and placements on it."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
    """A mesh over `devices` (all by default): `fsdp` of them share each copy of what is sharded."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    if devices.size % fsdp:
        raise ValueError(f"{devices.size} devices cannot be grouped by {fsdp}")
    return Mesh(devices.reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split along the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def constrain_batch(mesh: Mesh | None):
    """A function that splits every array of a tree along its first axis; nothing is done without a mesh."""
    if mesh is None:
        return lambda tree: tree
    placement = by_batch(mesh)
    return lambda tree: jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, placement), tree)


def over_batch(mesh: Mesh | None, function):
    """`function(shared, split)` on every device for its own part of the batch: `shared` is whole on each device, every
    array of `split` and of the result has the batch first. Gathers from resident data are not split well otherwise.
    """
    if mesh is None:
        return function
    batch = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch)
