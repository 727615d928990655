"""What annotations in nn, models and diffusion are made of.

Shapes are jaxtyping's: `Float[Array, "b h w c"]` is an array of any floating dtype with four axes.
A letter stands for one size throughout a signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from caphuman_jax.nn.initializers import AbstractRngs, HostRngs

Array = jax.Array | np.ndarray
"""An array on a device or on the host."""

if TYPE_CHECKING:  # Flax's layers declare nnx.Rngs, of which they only call params().
    Rngs = nnx.Rngs
else:
    Rngs = nnx.Rngs | HostRngs | AbstractRngs
