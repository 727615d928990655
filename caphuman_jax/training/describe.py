"""A configuration as it will be used: each entry with where it comes from, and the memory of the
state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections

from caphuman_jax.runtime import sharding
from caphuman_jax.training import base_model
from caphuman_jax.training.checkpoints import PARTS
from caphuman_jax.training.loop import LoopConfig
from caphuman_jax.training.run_config import (
    check_settings,
    from_config,
    raw_config,
    read_config,
    recipe_module,
)
from caphuman_jax.weights import model_folder


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry: its dotted name, its value, and where the value comes from."""

    name: str
    value: Any
    source: str


def entries(
    name: str, overrides: Sequence[str] = (), platform: str | None = None
) -> tuple[ml_collections.ConfigDict, list[Entry]]:
    """The resolved configuration, and its entries in the order of its file.

    Args:
        name: as for `run_config.read_config`, and so are the others.

    Raises:
        CapHumanError: as `read_config` and `from_config` do.
    """
    config = read_config(name, overrides, platform)
    check_settings(config)
    if "loop" in config:
        from_config(LoopConfig, config.loop, "loop")
    base = config.get("base")
    if base and "model" in config:
        config.model = model_folder.read_config(base_model.find(base)).to_dict()
    where = name if name.endswith(".py") else f"configs/{name}.py"
    before = dict(_flat(raw_config(name)))
    chosen = {entry.partition("=")[0] for entry in overrides}
    found = []
    for key, value in _flat(config):
        source = "command line" if key in chosen else where
        if base and key.startswith("model."):
            source = f"base {base}"
        elif before.get(key) == "auto" and value != "auto":
            source = f"auto on {platform or jax.default_backend()}"
        found.append(Entry(key, value, source))
    return config, found


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of the state, as a whole and on one device.

    Attributes:
        whole: {part: bytes}: params, ema, opt and frozen.
        device: the same on the device that holds most.
        checkpoint: bytes of one checkpoint; frozen networks are not in it.
    """

    whole: dict[str, int]
    device: dict[str, int]
    checkpoint: int


def memory(config: ml_collections.ConfigDict, platform: str) -> Memory | None:
    """What the state of a configuration takes on all devices that JAX has; None for a recipe that
    cannot say without its data.

    Activations and gradients are in addition: `caphuman compile` knows those.
    """
    module = recipe_module(config)
    if not hasattr(module, "abstract_recipe"):
        return None
    cfg = from_config(LoopConfig, config.loop, "loop")
    mesh = sharding.make_mesh(cfg.fsdp)
    recipe, _ = module.abstract_recipe(config, mesh, platform)
    state = recipe.abstract_state()
    shardings = sharding.state_shardings(mesh, state, cfg.sharding)
    trees = {part: (getattr(state, at), getattr(shardings, at)) for part, at in PARTS.items()}
    fixed = sharding.frozen_shardings(mesh, recipe.frozen, cfg.sharding)
    trees["frozen"] = (recipe.frozen, fixed)
    whole = {part: sum(map(_bytes, jax.tree.leaves(tree))) for part, (tree, _) in trees.items()}
    device = {
        part: sum(
            _bytes(leaf, where.shard_shape(leaf.shape))
            for leaf, where in zip(jax.tree.leaves(tree), jax.tree.leaves(places))
        )
        for part, (tree, places) in trees.items()
    }
    return Memory(whole, device, sum(whole[part] for part in PARTS))


def _bytes(leaf: Any, shape: Sequence[int] | None = None) -> int:
    return math.prod(leaf.shape if shape is None else shape) * leaf.dtype.itemsize


def _flat(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
