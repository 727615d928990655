"""Where arrays live: a ('data', 'fsdp') mesh over all devices, with a leading 'slice' where there
are several, and one table from the path of a parameter to its place on it.

The batch is split over all axes. Of the state, "replicated" splits nothing, "zero" the optimizer
and the average (ZeRO, arXiv 1910.02054, stage 1), "fsdp" the parameters and the frozen networks
too. Between slices, whose network is slow, only gradients travel."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from caphuman_jax.errors import SettingError

MODES = ("replicated", "zero", "fsdp")

SPLIT = {
    "replicated": (),
    "zero": ("opt_state", "ema"),
    "fsdp": ("params", "opt_state", "ema", "frozen"),
}
"""The parts of the state, and "frozen", that are split in each mode."""

TABLE: tuple[tuple[str, str | int], ...] = (
    (r"^frozen/data/", "whole"),  # resident data: gathered from on every device
    (r"/(bias|scale|count)$|^step$", "whole"),
    (r"/embedding$", 0),  # by rows: a row is what is looked up
    (r"", "largest"),
)
"""Regular expression searched for in a leaf's path ("opt_state/1/0/mu/unet/conv_in/kernel") ->
"whole", "largest" (the largest axis that can be divided, the last among equals) or the number of
the axis to split; the first that fits counts."""

SMALL = 2**14
"""Leaves of fewer numbers stay whole: sending them costs more than it saves."""


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
    """A mesh over `devices` (all by default): `fsdp` of them, 0 for all of a slice, share each copy
    of what "fsdp" splits.

    Devices of one host follow each other, so a host's part of the batch is one run of it. Raises
    SettingError."""
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda d: (_slice(d), d.process_index, d.id),
    )
    slices = len({_slice(device) for device in devices})
    fsdp = fsdp or len(devices) // slices
    if fsdp < 1 or len(devices) % (slices * fsdp):
        raise SettingError(
            f"{len(devices)} devices in {slices} slice{'s' * (slices > 1)} cannot be grouped by "
            f"fsdp = {fsdp}"
        )
    names = ("data", "fsdp") if slices == 1 else ("slice", "data", "fsdp")
    grid = np.asarray(devices).reshape((-1, fsdp) if slices == 1 else (slices, -1, fsdp))
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def _slice(device) -> int:
    """The TPU slice of a device; all others are one."""
    return getattr(device, "slice_index", None) or 0


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split along the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def constrain_batch(mesh: Mesh | None):
    """A function that splits every array of a tree along its first axis; nothing is done without a
    mesh.
    """
    if mesh is None:
        return lambda tree: tree
    placement = by_batch(mesh)
    return lambda tree: jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, placement), tree)


def over_batch(mesh: Mesh | None, function):
    """`function(shared, split)` on every device for its own part of the batch: `shared` is whole on
    each device, every array of `split` and of the result has the batch first. Gathers from resident
    data are not split well otherwise."""
    if mesh is None:
        return function
    batch = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch)


def path_name(path) -> str:
    """ "a/b/0/c" of a path as `jax.tree_util.tree_leaves_with_path` gives it."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    )


def state_shardings(mesh: Mesh, state: Any, mode: str) -> Any:
    """The tree of NamedShardings of a `training.step.TrainState`'s shapes in one of MODES.
    Raises SettingError.
    """
    return _shardings(mesh, state, mode, "")


def frozen_shardings(mesh: Mesh, frozen: Any, mode: str) -> Any:
    """The same for the frozen networks, {name: tree}."""
    return _shardings(mesh, frozen, mode, "frozen/")


def _shardings(mesh: Mesh, tree: Any, mode: str, prefix: str) -> Any:
    if mode not in MODES:
        raise SettingError(f"sharding is {mode!r}; there are {', '.join(MODES)}")
    # A copy of the parameters is shared by the devices of 'fsdp'; optimizer and average are needed
    # once in a slice.
    axes = ("fsdp",) if mode == "fsdp" else ("data", "fsdp")

    def place(path, leaf) -> NamedSharding:
        name = prefix + path_name(path)
        how = next(how for pattern, how in TABLE if re.search(pattern, name))
        if how == "whole" or name.split("/")[0] not in SPLIT[mode] or math.prod(leaf.shape) < SMALL:
            return replicated(mesh)
        return NamedSharding(mesh, _split(leaf.shape, how, mesh, axes))

    return jax.tree_util.tree_map_with_path(place, tree)


def _split(
    shape: tuple[int, ...], how: str | int, mesh: Mesh, axes: tuple[str, ...]
) -> PartitionSpec:
    """Over all of `axes` where an axis of the array can be divided by so many, else over the one
    that splits it most.
    """
    choices = [axes] + sorted(((name,) for name in axes), key=lambda names: -mesh.shape[names[0]])
    for names in choices:
        parts = math.prod(mesh.shape[name] for name in names)
        able = [
            axis
            for axis, length in enumerate(shape)
            if length % parts == 0 and (how == "largest" or axis == how)
        ]
        if parts > 1 and able:
            axis = max(able, key=lambda axis: (shape[axis], axis))
            return PartitionSpec(*[None] * axis, names)
    return PartitionSpec()


def place(tree: Any, shardings: Any) -> Any:
    """Arrays on the host -> arrays where `shardings` says, each device given its own part alone;
    the same numbers on every host are needed.
    """

    def one(leaf, where):
        if isinstance(leaf, jax.Array) and where.is_fully_addressable:
            return jax.device_put(leaf, where)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(
            leaf.shape, where, lambda index: np.asarray(leaf[index])
        )

    return jax.tree.map(one, tree, shardings)


def place_batch(batch: dict, mesh: Mesh) -> dict:
    """This host's rows of a batch, nested dicts of numpy (rows, ...) -> global arrays, all rows of
    all hosts, split by `by_batch`.
    """
    where = by_batch(mesh)
    if where.is_fully_addressable:
        return jax.device_put(batch, where)  # one call for all of them
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def on_host(tree: Any) -> Any:
    """The whole of every array as numpy, on every host, leaf by leaf: no device holds more than one
    of them whole. All hosts have to call it.
    """

    def one(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
            assert isinstance(mesh, Mesh)
            whole: Callable = jax.jit(lambda x: x, out_shardings=replicated(mesh))
            return np.asarray(whole(leaf).addressable_data(0))
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def on_cpu():
    """A context in which arrays are made on the host, not on the accelerator, where JAX
    has both.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()
