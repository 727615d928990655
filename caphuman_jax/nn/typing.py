"""What annotations of arrays are made of.

Shapes are jaxtyping's: `Float[Array, "b h w c"]` is an array of any floating dtype with four axes.
A letter stands for one size throughout a signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from caphuman_jax.nn.initializers import AbstractRngs, HostRngs

Array = jax.Array | np.ndarray
"""An array on a device or on the host."""

Scalar = Float[jax.Array | np.ndarray | np.floating | float, ""]
"""A floating number, whatever holds it."""

if TYPE_CHECKING:  # Flax's layers declare nnx.Rngs, of which they only call params().
    Rngs = nnx.Rngs
else:
    Rngs = nnx.Rngs | HostRngs | AbstractRngs
