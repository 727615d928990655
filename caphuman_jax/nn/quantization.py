"""Weights in less memory: in the compute dtype, or as 8-bit whole numbers with a scale for each
output channel.

Networks are written for float32 weights and cast them to the compute dtype where they are used.
Casting them once when a model is loaded gives the same results to the last bit; norms, which
compute in float32, keep theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A kernel (…, inputs, outputs) as int8 `values` times the `scale` (outputs,) float32 of each
    output channel.
    """

    values: Any  # arrays, or what jax.tree.map makes of them
    scale: Any
    dtype: Any = dataclasses.field(metadata={"static": True})

    shape = property(lambda self: self.values.shape)

    def dense(self) -> jax.Array | np.ndarray:
        """The kernel in `dtype`, rounded once."""
        scale = self.scale
        if isinstance(scale, jax.Array):
            scale = jax.lax.broadcast_to_rank(scale, self.values.ndim)
        return (self.values.astype(jnp.float32) * scale).astype(self.dtype)


def dtypes(params: Mapping[str, Any], dtype) -> dict[str, Any]:
    """The dtype that `in_dtype` gives to each of the parameters; norms are float32."""
    kind = jnp.dtype(jnp.float32 if "scale" in params else dtype)
    return {
        name: dtypes(part, dtype) if isinstance(part, Mapping) else kind
        for name, part in params.items()
    }


def in_dtype(params: Mapping[str, Any], dtype) -> dict[str, Any]:
    """Parameters (arrays on the host) in a dtype, those of norms left as they are."""
    if "scale" in params:
        return dict(params)
    return {
        name: in_dtype(part, dtype) if isinstance(part, Mapping) else np.asarray(part).astype(dtype)
        for name, part in params.items()
    }


def in_int8(params: Mapping[str, Any], dtype) -> dict[str, Any]:
    """Parameters (arrays on the host) with kernels as `Int8` and the rest `in_dtype`; a network's
    first and last convolution are such rest.
    """
    packed = in_dtype(params, dtype)
    for name, part in params.items():
        if isinstance(part, Mapping) and "kernel" in part and name not in ("conv_in", "conv_out"):
            packed[name] = packed[name] | {
                "kernel": to_int8(np.asarray(part["kernel"], np.float32), dtype)
            }
        elif isinstance(part, Mapping) and "scale" not in part:
            packed[name] = in_int8(part, dtype) if "kernel" not in part else packed[name]
    return packed


def to_int8(kernel: np.ndarray, dtype) -> Int8:
    """A kernel, each output channel by its largest value: symmetric, to the nearest of
    255 steps.
    """
    scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    return Int8(np.rint(kernel / scale).astype(np.int8), scale, jnp.dtype(dtype))


def dequantize(params: Any, barrier_with: jax.Array | None = None) -> Any:
    """Replace packed leaves, which have a method `dense` (`Int8`), by dense arrays.

    Inside a loop, pass an array that changes from step to step as `barrier_with`, so that XLA does
    not hoist dequantization out of the loop: kernels then stay 8-bit between the steps."""
    is_packed = lambda leaf: hasattr(leaf, "dense")
    if not any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed))):
        return params
    if barrier_with is not None:
        params, _ = jax.lax.optimization_barrier((params, barrier_with))
    return jax.tree.map(
        lambda leaf: leaf.dense() if is_packed(leaf) else leaf, params, is_leaf=is_packed
    )
