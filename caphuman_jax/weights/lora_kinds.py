"""Kinds of factorized weights: the arrays that a file holds of a layer, in float32 → the weight in
PyTorch's layout.

LoRA (Hu et al. 2021, arXiv 2106.09685), also of convolutions and in LoCon's three parts; LoHa and
LoKr (Yeh et al. 2023, arXiv 2309.14859); and around any of them DoRA's magnitude (Liu et al. 2024,
arXiv 2402.09353)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


def decomposed(
    base: np.ndarray, added: np.ndarray, magnitude: np.ndarray, by_output: bool
) -> np.ndarray:
    """What DoRA adds to `base`: m · (W + Δ) / ‖W + Δ‖ − W.

    Args:
        base: W, float32 in PyTorch's layout (out, in, …).
        added: Δ, of the same shape.
        magnitude: m, one number for each output, or for each input.
        by_output: whether norms are those of the outputs' weights.

    Raises:
        ValueError: magnitudes of another number.
    """
    total = base + added
    axis = 0 if by_output else 1
    if magnitude.size != total.shape[axis]:
        raise ValueError(
            f"{magnitude.size} magnitudes, this model's layer has {total.shape[axis]} "
            f"{'outputs' if by_output else 'inputs'}"
        )
    others = tuple(n for n in range(total.ndim) if n != axis)
    norm = np.sqrt(np.sum(total * total, axis=others, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return total * (magnitude.reshape(norm.shape) / norm) - base


def _lora(x: dict[str, np.ndarray]) -> np.ndarray:
    up, down = x["up"], x["down"]
    if up.size != up.shape[0] * up.shape[1]:
        raise ValueError(f"an upward part of {up.shape}, which is not a matrix")
    up = up.reshape(up.shape[:2])
    if "mid" in x:
        return _tucker(x["mid"], up.T, down.reshape(down.shape[:2]))
    # Multiplied the other way round, the product lies in memory as our layout wants it.
    return (down.reshape(down.shape[0], -1).T @ up.T).T.reshape(up.shape[0], *down.shape[1:])


def _tucker(core: np.ndarray, outward: np.ndarray, inward: np.ndarray) -> np.ndarray:
    """core (i, j, rows, columns), outward (i, out), inward (j, in) → (out, in, rows, columns)."""
    return np.einsum("ijkl,io,jc->ockl", core, outward, inward, optimize=True)


def _loha(x: dict[str, np.ndarray]) -> np.ndarray:
    if "hada_t1" in x:
        first, second = (
            _tucker(x[f"hada_t{n}"], x[f"hada_w{n}_a"], x[f"hada_w{n}_b"]) for n in (1, 2)
        )
    else:
        first, second = (x[f"hada_w{n}_a"] @ x[f"hada_w{n}_b"] for n in (1, 2))
    return first * second


def _lokr(x: dict[str, np.ndarray]) -> np.ndarray:
    first = x["lokr_w1"] if "lokr_w1" in x else x["lokr_w1_a"] @ x["lokr_w1_b"]
    if "lokr_t2" in x:
        second = _tucker(x["lokr_t2"], x["lokr_w2_a"], x["lokr_w2_b"])
    elif "lokr_w2" in x:
        second = x["lokr_w2"]
    else:
        second = x["lokr_w2_a"] @ x["lokr_w2_b"]
    return np.kron(first.reshape(*first.shape[:2], *[1] * (second.ndim - 2)), second)


def _lokr_rank(x: Mapping[str, np.ndarray]) -> int | None:
    """None: both factors are whole, and alpha says nothing."""
    return next((x[role].shape[0] for role in ("lokr_w1_b", "lokr_w2_b") if role in x), None)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a layer's arrays become a weight, and what their rank is."""

    weight: Any
    rank: Any
    roles: tuple[
        str, ...
    ]  # regular expressions, each the whole set of roles, sorted and joined by a blank


KINDS = {
    "LoRA": Kind(_lora, lambda x: x["down"].shape[0], ("down up", "down mid up")),
    "LoHa": Kind(
        _loha,
        lambda x: x["hada_w1_b"].shape[0],
        (
            "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
            "hada_t1 hada_t2 hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        ),
    ),
    "LoKr": Kind(
        _lokr,
        _lokr_rank,
        (
            "(lokr_t2 )?(lokr_w1|lokr_w1_a lokr_w1_b) lokr_w2_a lokr_w2_b",
            "(lokr_w1|lokr_w1_a lokr_w1_b) lokr_w2",
        ),
    ),
}


def elements(x: Mapping[str, np.ndarray]) -> int:
    """How many numbers the product of a layer's arrays has."""
    after = lambda role: math.prod(x[role].shape[2:]) if role in x else 1
    if "up" in x:
        return x["up"].shape[0] * math.prod(x["down"].shape[1:]) * after("mid")
    if "hada_w1_a" in x:
        outward = x["hada_w1_a"].shape["hada_t1" in x]
        return outward * math.prod(x["hada_w1_b"].shape[1:]) * after("hada_t1")
    first = (
        x["lokr_w1"].size
        if "lokr_w1" in x
        else x["lokr_w1_a"].shape[0] * math.prod(x["lokr_w1_b"].shape[1:])
    )
    if "lokr_w2" in x:
        return first * x["lokr_w2"].size
    outward = x["lokr_w2_a"].shape["lokr_t2" in x]
    return first * outward * math.prod(x["lokr_w2_b"].shape[1:]) * after("lokr_t2")


def kind_of(arrays: Mapping[str, Any]) -> str | None:
    """The kind that a layer's roles make up; None for any other set of roles."""
    roles = " ".join(sorted(arrays))
    return next(
        (
            name
            for name, kind in KINDS.items()
            if any(re.fullmatch(pattern, roles) for pattern in kind.roles)
        ),
        None,
    )
