"""How networks compute: choices of speed against memory that change results by rounding at most.

They are in force while a function is traced: `with using(remat="blocks"): jax.jit(step).lower(…)`,
or inside the function itself. Nothing has to be handed through constructors, and a network's
structure does not depend on them."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

ATTENTION = ("auto", "xla", "cudnn", "splash")
REMAT = ("none", "attention", "products", "blocks")


@dataclasses.dataclass(frozen=True)
class Choices:
    """attention: one of ATTENTION, or by the number of queries: "4096=cudnn,256=xla" takes cudnn
    from 4,096 on, xla from 256 on and "auto" below. remat: what the backward pass computes again
    instead of keeping it: nothing; the softmax of "attention"; all but the "products" (matrix
    products and convolutions are kept, norms and activations made again); whole "blocks" from their
    inputs.
    platform: what is compiled for, "gpu", "tpu" or "cpu"; None: JAX's own default. mesh: over which
    batches are split; kernels that the compiler cannot split (splash) need it where there is more
    than one device."""

    attention: str = "auto"
    remat: str = "none"
    platform: str | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        for _, name in self._levels():
            if name not in ATTENTION:
                raise ValueError(
                    f"unknown attention backend {name!r}; known: {', '.join(ATTENTION)}"
                )
        if self.remat not in REMAT:
            raise ValueError(f"unknown remat policy {self.remat!r}; known: {', '.join(REMAT)}")

    def attention_for(self, queries: int) -> str:
        """The backend's name, "auto" among them, for so many queries."""
        return next((name for least, name in self._levels() if queries >= least), "auto")

    def on(self) -> str:
        """The platform that is compiled for."""
        return self.platform or {"cuda": "gpu", "rocm": "gpu"}.get(
            jax.default_backend(), jax.default_backend()
        )

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


_current: contextvars.ContextVar[Choices | None] = contextvars.ContextVar("choices", default=None)


def current() -> Choices:
    """The choices in force."""
    return _current.get() or Choices()


@contextlib.contextmanager
def using(**changes) -> Iterator[Choices]:
    """Within it, these of the choices are others. Raises ValueError for an unknown name."""
    choices = dataclasses.replace(current(), **changes)
    token = _current.set(choices)
    try:
        yield choices
    finally:
        _current.reset(token)


def block(function: Callable) -> Callable:
    """A residual or transformer block, as the remat policy wants it differentiated."""
    remat = current().remat
    if remat == "blocks":
        return jax.checkpoint(lambda *arrays: function(*arrays))
    if remat == "products":
        return jax.checkpoint(lambda *arrays: function(*arrays), policy=_is_product)
    return function


def softmax_attention(function: Callable) -> Callable:
    """Attention that holds its weights in memory, as the remat policy wants it differentiated."""
    return jax.checkpoint(function) if current().remat == "attention" else function


def _is_product(primitive, *_, **params) -> bool:
    """Whether an array is kept by "products": what weights are multiplied with, and the outputs of
    fused attention.
    """
    if primitive.name == "dot_general":
        return not any(
            params["dimension_numbers"][1]
        )  # products over a batch of matrices are attention's, (L, S) large
    return (
        primitive.name == "conv_general_dilated"
        or "dot_product_attention" in primitive.name
        or primitive.name == "pallas_call"
    )
