"""What of a model is trained and what stays frozen: two trees that together are the networks'
parameters.

Both are {network: nested dicts}. CapFace and the identity projector are trained whole; of the UNet,
the parameters that expressions pick. LoRA factors are trained as well, under "lora"
(training/lora_layers.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from caphuman_jax.errors import SettingError
from caphuman_jax.models.registry import TRAINABLE

Tree = dict[str, Any]


def rules(text: str) -> tuple[tuple[re.Pattern, float | None], ...]:
    """ "up\\.3=1e-5,conv_out" → ((expression, learning rate or None for that of the rest), …).
    Raises SettingError.

    An expression is searched for in the dotted path of a parameter of the UNet, such as
    up.3.attention_0.cross_attention.key.kernel."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        pattern, equals, rate = part.rpartition("=")
        try:
            found.append((re.compile(pattern if equals else part), float(rate) if equals else None))
        except (re.error, ValueError) as error:
            raise SettingError(
                f"unfreeze {part!r}: write EXPRESSION or EXPRESSION=LEARNING_RATE, several with "
                f"commas between them ({error})"
            ) from error
    return tuple(found)


def split(params: Mapping[str, Tree], unfreeze: str = "") -> tuple[Tree, Tree]:
    """Parameters (or their shapes) of networks, the UNet among them → (trained, frozen).

    Raises SettingError for an expression of `unfreeze` that picks nothing.
    """
    trained = {name: params[name] for name in TRAINABLE if name in params}
    frozen = {name: tree for name, tree in params.items() if name not in trained}
    unet = traverse_util.flatten_dict(params["unet"], sep=".")
    picked = set()
    for pattern, _ in rules(unfreeze):
        here = {path for path in unet if pattern.search(path)}
        if not here:
            raise SettingError(
                f"unfreeze: {pattern.pattern!r} picks no parameter of the UNet; they are named "
                f"like {next(iter(unet))}"
            )
        picked |= here
    if picked:
        trained["unet"] = _nested({path: leaf for path, leaf in unet.items() if path in picked})
        frozen["unet"] = _nested({path: leaf for path, leaf in unet.items() if path not in picked})
    return trained, frozen


def joined(trained: Mapping[str, Tree], frozen: Mapping[str, Tree]) -> Tree:
    """Inverse of `split`: {network: all its parameters}."""
    return {
        name: _merged(trained.get(name, {}), frozen.get(name, {}))
        for name in [*frozen, *(n for n in trained if n not in frozen)]
    }


def rates(trained: Mapping[str, Tree], learning_rate: float, unfreeze: str = "") -> Tree:
    """A tree like `trained`: each parameter's learning rate as a multiple of `learning_rate`; of
    several rules the first counts.
    """
    own = rules(unfreeze)

    def rate(path, _) -> float:
        network, *parts = [str(key.key) for key in path]
        if network != "unet":
            return 1.0
        found = next((rate for pattern, rate in own if pattern.search(".".join(parts))), None)
        return 1.0 if found is None else found / learning_rate

    return jax.tree_util.tree_map_with_path(rate, dict(trained))


def stored(frozen: Tree, dtype: Any, keep: Sequence[str] = ()) -> Tree:
    """Frozen networks as they are kept on the devices: kernels and embeddings in the compute dtype,
    to which layers would cast them anyway; norms and biases stay float32.

    Args:
        frozen: {network: parameters}, arrays or shapes.
        dtype: the compute dtype.
        keep: dotted paths, with their network, of kernels that stay float32.
    """
    kept = set(keep)

    def convert(path, leaf):
        names = [str(key.key) for key in path]
        if names[-1] not in ("kernel", "embedding") or ".".join(names) in kept:
            return leaf
        return (
            jax.ShapeDtypeStruct(leaf.shape, dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else np.asarray(leaf).astype(dtype)
        )

    return jax.tree_util.tree_map_with_path(convert, frozen)


def _nested(flat: dict[str, Any]) -> Tree:
    return traverse_util.unflatten_dict(flat, sep=".")


def _merged(first: Any, second: Any) -> Any:
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return second if first is None else first
    return {
        key: _merged(first.get(key), second[key]) if key in second else first[key]
        for key in [*first, *(k for k in second if k not in first)]
    }
