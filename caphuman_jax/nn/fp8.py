"""Matrix products of 8-bit floating-point numbers (e4m3: 4 bits of exponent, 3 of mantissa), which
Hopper's and Ada's matrix units multiply at twice the rate of bfloat16.

A layer computes y = (x · s) @ (kernel / s) with both factors rounded to e4m3. The factor s is one
number for each layer, so it cancels: no result has to be scaled afterwards, which would be another
reading and writing of the features. That is exact enough because e4m3 is a floating-point type:
over 15 powers of two its relative error is the same, and s puts inputs and kernels of typical size
into the middle of them. Typical sizes follow from the weights (the inputs are normalized), so
nothing is calibrated on photos, and inputs have more than a thousand times their typical size left
until they saturate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from caphuman_jax.errors import SettingError

E4M3 = jnp.float8_e4m3fn
_LARGEST = float(jnp.finfo(E4M3).max)  # 448; what is larger would become NaN
_AFTER_GATE = 0.5  # the GELU halves its gate: by how much the next layer's inputs are smaller
_LEAST_CAPABILITY = 8.9  # Ada


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fp8:
    """A kernel (inputs, outputs) for `product`.

    Attributes:
        values: (outputs, inputs) e4m3, kernel / factor. Transposed, as cuBLASLt takes it.
        factor: () float32, what inputs are multiplied by before they are rounded.
    """

    values: Any  # arrays, or what jax.tree.map makes of them
    factor: Any

    def __getitem__(self, key: Any) -> Fp8:
        """Itself: layers read a parameter as `parameter[...]`."""
        assert key is Ellipsis
        return self


def check_device(device: jax.Device) -> None:
    """Raises SettingError: a device without 8-bit floating-point products."""
    capability = str(getattr(device, "compute_capability", "0"))
    if device.platform in ("gpu", "cuda") and capability.replace(".", "", 1).isdigit():
        if float(capability) >= _LEAST_CAPABILITY:
            return
    raise SettingError(
        "precision fp8 needs an NVIDIA GPU of the Ada or Hopper generation or a newer one, and "
        f"this device is {device.device_kind}; leave it out"
    )


def product(
    x: Float[Array, "*batch k"], kernel: Fp8, bias: Float[Array, " n"] | None = None
) -> Float[Array, "*batch n"]:
    """x (…, K) @ kernel + bias → (…, N) in x's dtype; sums are float32."""
    scaled = x.astype(jnp.float32) * kernel.factor
    y = jax.lax.dot_general(
        jnp.clip(scaled, -_LARGEST, _LARGEST).astype(E4M3),
        kernel.values,
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=x.dtype,
    )
    return y if bias is None else y + broadcast_to_rank(bias.astype(x.dtype), y.ndim)


def with_fp8_products(params: Mapping[str, Any]) -> dict[str, Any]:
    """A UNet's or CapFace's parameters with the kernels of its feed-forward layers as `Fp8`, but
    for those at the full size of the latents, the outermost.

    Other products are too small: rounding their inputs costs more than their multiplication saves
    (docs/notes/performance.md). Kernels that are not plain arrays (8-bit whole numbers) stay too.

    Args:
        params: arrays on the device; in a trace.
    """

    def walk(name: str, part: Any) -> Any:
        if not isinstance(part, Mapping) or name == "0":
            return part
        return _block(part) if "feed_forward" in part else {n: walk(n, p) for n, p in part.items()}

    return walk("", params)


def _block(block: Mapping[str, Any]) -> dict[str, Any]:
    """A `TransformerBlock`'s parameters."""
    forward, inputs = block["feed_forward"], _norm_size(block["norm_3"])
    hidden = _AFTER_GATE * jnp.square(_output_size(forward["up"], inputs))
    packed = {"up": _packed(forward["up"], inputs), "down": _packed(forward["down"], hidden)}
    return {**block, "feed_forward": packed}


def _packed(layer: Mapping[str, Any], input_size: jax.Array) -> dict[str, Any]:
    """A layer whose inputs have this typical size. The factor of its kernel makes inputs and kernel
    equally large.
    """
    if not isinstance(layer["kernel"], jax.Array):
        return dict(layer)
    kernel = layer["kernel"].astype(jnp.float32)
    factor = jnp.sqrt(_size(kernel) / jnp.maximum(input_size, 1e-6))
    factor = jnp.where(factor > 0, factor, 1.0)  # of a kernel of zeros
    small = jnp.clip(kernel / factor, -_LARGEST, _LARGEST).T.astype(E4M3)
    return {**layer, "kernel": Fp8(small, factor)}


def _size(x: jax.Array) -> jax.Array:
    """The root of the mean square."""
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())


def _norm_size(norm: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.hypot(_size(norm["scale"]), _size(norm["bias"]))


def _output_size(layer: Mapping[str, Any], input_size: jax.Array | float) -> jax.Array:
    """Typical size of a layer's outputs for inputs that are independent."""
    kernel = layer["kernel"]
    if not isinstance(kernel, jax.Array):
        return jnp.float32(1)  # nothing is packed then
    return _size(kernel) * jnp.float32(kernel.shape[0] ** 0.5) * input_size
