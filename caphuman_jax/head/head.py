"""`Head`: everything that is known of one head in one picture, in numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.head import pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import kept_programs

POOR_FIT = 0.7
"""Confidence below which a head is reported to fit poorly."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """A head in a picture; a pytree, so stacks of heads are heads with a leading axis.

    identity (K,) in standard deviations; expression (E,) in [0,1], in the model's order of names;
    rotation (3,3), see pose; scale () pixels per model unit and translation (2,) pixels (x, y) of
    the model's origin, see camera; size (2,) height and width in pixels of the picture that those
    are for; light (9,3) SH coefficients × RGB, see lighting; albedo (V,3) RGB in [0,1], or of a
    FLAME head also its texture (S,S,3). Colors are display (sRGB-encoded) values throughout and
    light multiplies them as they are, as in DECA. residual () median landmark distance over the
    distance
    of the outer eye corners: about 0.01-0.03 for a good fit.
    """

    identity: Array
    expression: Array
    rotation: Array
    scale: Array
    translation: Array
    size: Array
    light: Array
    albedo: Array
    residual: Array

    @property
    def angles(self) -> Array:
        """Yaw, pitch, roll (3,) in degrees."""
        return _angles(self.rotation)

    @property
    def confidence(self) -> Array:
        """In [0,1]: 1 for a perfect fit, 0.5 where the median landmark is off by 5 % of the eye
        distance.
        """
        return 1 / (1 + (self.residual / 0.05) ** 2)


_angles = kept_programs.jit(pose.angles)


def stack(heads: list[Head]) -> Head:
    """Heads → one Head with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *heads)


def unstack(heads: Head) -> list[Head]:
    """Inverse of `stack`."""
    return [jax.tree.map(lambda leaf: leaf[i], heads) for i in range(heads.scale.shape[0])]


def to_numbers(head: Head, model: HeadModel) -> dict:
    """The head as JSON types: angles in degrees, position relative to the picture, expressions by
    name (those above 0.005).
    """
    yaw, pitch, roll = (round(float(a), 3) for a in np.asarray(head.angles))
    weights = np.asarray(head.expression)
    return {
        "model": model.name,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "scale": float(head.scale),
        "translation": np.asarray(head.translation).tolist(),
        "size": np.asarray(head.size).tolist(),
        "expression": {
            n: round(float(w), 4) for n, w in zip(model.expression_names, weights) if abs(w) > 0.005
        },
        "identity": np.asarray(head.identity).round(5).tolist(),
        "light": np.asarray(head.light).round(5).tolist(),
        "residual": float(head.residual),
    }
