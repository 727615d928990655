"""A network as the package passes it round: its static structure and its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from caphuman_jax.nn.initializers import AbstractRngs

Network = tuple[nnx.GraphDef, dict]
"""`graphdef` (static structure, hashable, holds the compute dtype) and `params` (nested dicts of
arrays with string keys). In a jitted function: `nnx.merge(graphdef, params)(…)`."""


def split(module: nnx.Module) -> Network:
    """A module → (graphdef, params)."""
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def abstract_network(make: Callable[[Any], nnx.Module]) -> Network:
    """The network that `make(rngs)` builds, with `jax.ShapeDtypeStruct` leaves; nothing is
    allocated or computed."""
    return split(nnx.eval_shape(lambda: make(AbstractRngs())))
