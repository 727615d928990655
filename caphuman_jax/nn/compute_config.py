"""How a network computes: dtype, and choices of speed against memory that change results by
rounding at most.

A `ComputeConfig` is given to a network's constructor and becomes part of its graphdef. The graphdef
is a static argument of every compiled function, so two configurations never share a program. The
parameters and their names do not depend on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

ATTENTION = ("auto", "xla", "cudnn", "splash")
REMAT = ("none", "attention", "products", "blocks")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a network computes; hashable.

    Attributes:
        dtype: Compute dtype. Parameters are float32 whatever it is.
        attention: One of ATTENTION; or a backend by the number of queries: "4096=cudnn,256=xla"
            takes cudnn from 4,096 queries on, xla from 256 on and "auto" below.
        remat: What the backward pass recomputes instead of keeping it: "none"; "attention", the
            softmax of attention; "products", everything but matrix products and convolutions, so
            norms and activations; "blocks", whole blocks from their inputs.
        platform: What the program is compiled for, "gpu", "tpu" or "cpu"; None: JAX's own default.
        mesh: Devices that the batch is split over. Kernels that the compiler cannot split (splash)
            need it where there is more than one device.

    Raises:
        ValueError: An attention backend or remat policy is unknown.
    """

    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    platform: str | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        for _, name in self._levels():
            if name not in ATTENTION:
                raise ValueError(
                    f"unknown attention backend {name!r}; known: {', '.join(ATTENTION)}"
                )
        if self.remat not in REMAT:
            raise ValueError(f"unknown remat policy {self.remat!r}; known: {', '.join(REMAT)}")

    def attention_for(self, queries: int) -> str:
        """The attention backend, which may be "auto", for this number of queries."""
        return next((name for least, name in self._levels() if queries >= least), "auto")

    def platform_name(self) -> str:
        """The platform that is compiled for: "gpu", "tpu" or "cpu"."""
        default = jax.default_backend()
        return self.platform or {"cuda": "gpu", "rocm": "gpu"}.get(default, default)

    def remat_block(self, function: Callable) -> Callable:
        """A residual or transformer block, differentiated as the remat policy wants it."""
        if self.remat == "blocks":
            return jax.checkpoint(lambda *arrays: function(*arrays))
        if self.remat == "products":
            return jax.checkpoint(lambda *arrays: function(*arrays), policy=_is_product)
        return function

    def remat_attention(self, function: Callable) -> Callable:
        """Attention that holds its weights in memory, differentiated as the remat policy
        wants it.
        """
        return jax.checkpoint(function) if self.remat == "attention" else function

    def _levels(self) -> list[tuple[int, str]]:
        if "=" not in self.attention:
            return [(0, self.attention)]
        pairs = [part.partition("=") for part in self.attention.split(",")]
        try:
            return sorted(((int(least), name.strip()) for least, _, name in pairs), reverse=True)
        except ValueError:
            raise ValueError(
                f"attention {self.attention!r}: write a backend, or LENGTH=BACKEND,…"
            ) from None


def _is_product(primitive, *_, **params) -> bool:
    """Whether "products" keeps an array: the result of a product with weights or of fused
    attention.
    """
    if primitive.name == "dot_general":
        # Products over a batch of matrices are those of attention, whose (L, S) is large.
        return not any(params["dimension_numbers"][1])
    return (
        primitive.name == "conv_general_dilated"
        or "dot_product_attention" in primitive.name
        or primitive.name == "pallas_call"
    )
