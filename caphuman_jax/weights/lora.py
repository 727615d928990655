"""LoRA files (Hu et al. 2021, arXiv 2106.09685) for the UNet and the text encoder, added to our
parameters.

A file holds, for some of the layers, two narrow matrices whose product is added to the layer's
weight: W + strength · alpha / rank · up @ down. Read are the forms of kohya's sd-scripts (names of
diffusers' or of the original's blocks joined by "_"), of diffusers (attention processors;
`lora_A`/`lora_B` of PEFT; `lora_linear_layer`), convolutions, LoCon's three-part form, and LyCORIS'
LoHa and LoKr (Yeh et al. 2023, arXiv 2309.14859). The base is never changed: take a LoRA away by
going back to it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.io import json_reader
from caphuman_jax.weights.convert import fits, to_ours
from caphuman_jax.weights.names import PREFIXES, modules

NETWORKS = ("unet", "text")
Strength = float | tuple[float, float]
"""One for all, or (of the UNet, of the text encoder)."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a file says of one layer. key: its name there; arrays: by role ("up", "down",
    "hada_w1_a" …), as stored; scale: alpha / rank.
    """

    key: str
    arrays: dict[str, np.ndarray]
    scale: float

    def weight(self) -> np.ndarray:
        """What is added to the layer's weight at strength 1: float32 in PyTorch's layout; a kernel
        may be flat, (out, in·rows·columns).
        """
        arrays = {role: np.asarray(x).astype(np.float32) for role, x in self.arrays.items()}
        kind = _kind(arrays)
        assert kind is not None, "checked when the file was read"
        return _KINDS[kind].weight(arrays) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA file as read. name: for messages; parts: network ("unet", "text") → our parameter path
    → part.
    """

    name: str
    parts: dict[str, dict[str, Part]]

    def delta(
        self, network: str, path: str, shape: Sequence[int], strength: Strength = 1.0
    ) -> np.ndarray | None:
        """What is added to the parameter `path` (dotted) of `shape`: float32 in our layout; None
        where nothing is.

        Raises ModelFolderError if the file's layer is of another shape.
        """
        part, factor = self.parts.get(network, {}).get(path), _strength_of(network, strength)
        if part is None or factor == 0:
            return None
        shape = tuple(shape)
        theirs = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
        try:
            if _elements(part.arrays) != math.prod(theirs):  # before anything is multiplied
                raise ValueError(
                    f"a weight of {_elements(part.arrays):,} numbers, this model's layer is "
                    f"{theirs}"
                )
            weight = part.weight()
            if not np.isfinite(weight).all():
                raise ModelFolderError(
                    f"{self.name} cannot be used: {part.key} holds numbers that are not finite "
                    f"(NaN or infinity), as after a training that diverged"
                )
            if weight.shape == (theirs[0], math.prod(theirs[1:])):
                weight = weight.reshape(theirs)
            if not fits(path, weight.shape, shape):
                raise ValueError(f"a weight of {weight.shape}, this model's layer is {theirs}")
        except ValueError as error:
            raise ModelFolderError(
                f"{self.name} does not fit: {part.key}: {error}; it was probably made for another "
                f"base model (SD 2, SDXL …)"
            ) from error
        return to_ours(path, weight, shape) * np.float32(factor)


Loras = Iterable[tuple[Lora, Strength]]


def parse(text: str) -> tuple[Path, Strength]:
    """ "style.safetensors:0.8", or "style.safetensors:0.8,0.5" with a strength for the UNet and one
    for the text encoder; without, 1.

    Raises SettingError.
    """
    path, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        strengths = tuple(float(part) for part in tail.split(","))
        if len(strengths) > 2 or not all(map(math.isfinite, strengths)):
            raise ValueError(tail)
    except ValueError as error:
        raise SettingError(
            f"LoRA {text}: there is no such file, and {tail!r} is not a strength; write FILE:0.8 "
            f"or FILE:0.8,0.5"
        ) from error
    return Path(path), strengths[0] if len(strengths) == 1 else (strengths[0], strengths[1])


def read_file(path: str | os.PathLike, cfg: ModelConfig) -> Lora:
    """`read` of a .safetensors or PyTorch file. Raises ModelFolderError."""
    from caphuman_jax.weights.checkpoint_files import open_checkpoint

    with open_checkpoint(Path(path)) as checkpoint:
        # In a PyTorch file alpha may be a plain number.
        alphas = {
            key: np.asarray(x, np.float32)
            for key, x in checkpoint.extra.items()
            if key.endswith(".alpha") and isinstance(x, int | float)
        }
        everything = ChainMap(alphas, cast(MutableMapping, checkpoint))  # only read
        return read(everything, cfg, name=Path(path).name, metadata=checkpoint.metadata)


def read(
    checkpoint: Mapping[str, Any],
    cfg: ModelConfig,
    *,
    name: str = "the LoRA",
    metadata: Mapping[str, str] | None = None,
) -> Lora:
    """A LoRA from {key: array}, for the UNet and text encoder of `cfg`.

    metadata: that of a safetensors file, where diffusers writes alpha; a layer with no alpha
    anywhere has its rank as alpha. Raises ModelFolderError naming every key that is not understood,
    and by its kind a file that is not a LoRA of these kinds."""
    lookup = {network: _lookup(network, cfg) for network in NETWORKS}
    places: dict[tuple[str, str], str] = {}
    arrays: dict[tuple[str, str], dict[str, Any]] = {}
    unknown = []
    for key in checkpoint:
        if key.startswith("bundle_emb."):  # words of its own, see `weights.embeddings`
            continue
        _refuse(key, name)
        found = next(filter(None, (pattern.fullmatch(key) for pattern in _KEYS)), None)
        place = _place(found["module"], lookup) if found else None
        if found is None or place is None:
            unknown.append(key)
            continue
        role = {"A": "down", "B": "up"}.get(found["role"], found["role"])
        if role in arrays.setdefault(place, {}):
            raise ModelFolderError(
                f"{name} says twice what is added to one layer: {places[place]} and "
                f"{found['module']}"
            )
        array = np.asarray(checkpoint[key])
        if array.size != 1 if role == "alpha" else array.ndim < 2 or array.size == 0:
            raise ModelFolderError(f"{name} is damaged: {key} has the shape {array.shape}")
        arrays[place][role] = array
        places[place] = found["module"]
    if unknown:
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        raise ModelFolderError(
            f"{name} has keys that this model has no place for: {', '.join(unknown[:20])}{more}; "
            f"is it a LoRA, and for Stable Diffusion 1?"
        )
    if not arrays:
        raise ModelFolderError(f"{name} is empty: it holds no LoRA")

    settings = _Settings(name, metadata or {})
    parts: dict[str, dict[str, Part]] = {}
    for (network, path), roles in arrays.items():
        module = places[network, path]
        alpha = roles.pop("alpha", None)
        kind = _kind(roles)
        if kind is None:
            raise ModelFolderError(
                f"{name} is incomplete: of {module} it has only {', '.join(roles) or 'alpha'}"
            )
        rank = _KINDS[kind].rank(roles)
        if alpha is None:
            scale = settings.scale(network, module, rank)
        else:
            scale = 1.0 if rank is None else alpha.astype(np.float32).item() / rank
        parts.setdefault(network, {})[path] = Part(module, roles, scale)
    return Lora(name, parts)


def check(params: Mapping[str, Any], loras: Loras) -> None:
    """Raise ModelFolderError if a LoRA (of a strength that is not 0) adds to a network or layer
    that is not in `params`.

    params: {network: nested dicts}; the leaves are not read.
    """
    paths = {
        network: traverse_util.flatten_dict(params[network], sep=".").keys()
        for network in NETWORKS
        if network in params
    }
    for lora, strength in loras:
        for network, parts in lora.parts.items():
            if _strength_of(network, strength) == 0:
                continue
            if network not in paths:
                raise ModelFolderError(
                    f"{lora.name} adds to the network {network}, which is not here; give it "
                    f"strength 0 for that one"
                )
            missing = [part.key for path, part in parts.items() if path not in paths[network]]
            if missing:
                raise ModelFolderError(
                    f"{lora.name} adds to layers that this model does not have: "
                    f"{', '.join(missing[:20])}"
                )


def merged(network: str, path: str, array: Any, loras: Loras) -> Any:
    """One parameter with LoRAs added: summed in float32, then of the array's type again; the array
    itself where nothing is added.

    array: numpy or JAX array in our layout; what comes back is of the same kind, and on the same
    devices."""
    total = None
    for lora, strength in loras:
        delta = lora.delta(network, path, array.shape, strength)
        if delta is not None:
            total = np.asarray(array).astype(np.float32) + delta if total is None else total + delta
    if total is None:
        return array
    result = np.ascontiguousarray(total).astype(array.dtype)
    if not isinstance(array, jax.Array):
        return result
    return jax.device_put(result, array.format)  # pyrefly: ignore[missing-attribute]


def apply(params: Mapping[str, Any], loras: Loras) -> dict[str, Any]:
    """Parameters with LoRAs added, as [(lora, strength), …]; `params` stay as they are, and
    unchanged leaves are shared with them.

    params: {network: nested dicts of numpy or JAX arrays}. Raises ModelFolderError (see `check`,
    `Lora.delta`)."""
    loras = list(loras)
    check(params, loras)
    return {
        network: _mapped(tree, lambda path, leaf: merged(network, path, leaf, loras))
        if network in NETWORKS
        else tree
        for network, tree in params.items()
    }


def _mapped(tree: Any, change, path: str = "") -> Any:
    if not isinstance(tree, Mapping):
        return change(path, tree)
    return {
        key: _mapped(value, change, f"{path}.{key}" if path else key) for key, value in tree.items()
    }


def _strength_of(network: str, strength: Strength) -> float:
    return float(strength[NETWORKS.index(network)] if isinstance(strength, Sequence) else strength)


# A key is a module's name and what the array is of it.
_KEYS = [
    re.compile(
        r"(?P<module>.+?)(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<role>down|up|mid|A|B)(?:\.[^.]+)?\.weight"
    ),
    re.compile(r"(?P<module>.+)\.(?P<role>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"),
    re.compile(r"(?P<module>.+?)(?:[._]lora)?\.(?P<role>alpha)"),
]
_STARTS = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text"),
    ("lora_te1_", "text"),
    ("unet.", "unet"),
    ("text_encoder.", "text"),
    (PREFIXES["unet"], "unet"),
    ("diffusion_model.", "unet"),
    ("text_model.", "text"),
    ("", "unet"),
]
_REFUSED = {
    r".*\.(dora_scale|lora_magnitude_vector)(\..*)?": "a DoRA",
    r".*\.on_input": "an (IA)³",
    r".*\.(oft_.*|boft_.*)": "an OFT",
    r".*\.(diff|diff_b)": "a full difference of weights",
    r".*\.[wb]_norm": "a file that changes norms",
    r".*\.[ab][12]\.weight": "a GLoRA",
    r"bundle_emb\..*": "a LoRA with an embedding in it",
    r"(lora_te2_|text_encoder_2\.).*": "a LoRA for SDXL",
    r"base_model\.model\..*": "an adapter saved by PEFT alone, without its alpha",
}


def _refuse(key: str, name: str) -> None:
    for pattern, kind in _REFUSED.items():
        if re.fullmatch(pattern, key):
            raise ModelFolderError(
                f"{name} is {kind} ({key}), which cannot be used here; LoRA, LoCon, LoHa and LoKr "
                f"for Stable Diffusion 1 can"
            )


def _lookup(network: str, cfg: ModelConfig) -> dict[str, str]:
    """{any form of a layer's name, joined by "_": our path of its kernel}."""
    names = {}
    for *theirs, ours in modules(network, cfg):
        if not ours.split(".")[-1].startswith(("norm", "tokens", "positions")):
            names |= {name.replace(".", "_"): f"{ours}.kernel" for name in theirs}
    if network == "unet":  # diffusers' attention processors say to_out
        return names | {
            name.removesuffix("_0"): path
            for name, path in names.items()
            if name.endswith("_to_out_0")
        }
    # Early diffusers named the text encoder's projections as the UNet's; late transformers leave
    # out the first part of every name.
    names |= {re.sub(r"_(q|k|v|out)_proj$", r"_to_\1", name): path for name, path in names.items()}
    return names | {name.removeprefix("text_model_"): path for name, path in names.items()}


def _place(module: str, lookup: dict[str, dict[str, str]]) -> tuple[str, str] | None:
    """A module's name → (network, our path)."""
    start, network = next(
        (start, network) for start, network in _STARTS if module.startswith(start)
    )
    path = lookup[network].get(
        module.removeprefix(start).replace(".processor.", ".").replace(".", "_")
    )
    return (network, path) if path else None


class _Settings:
    """The settings of PEFT that diffusers writes into a file's metadata: alpha, where there are no
    `.alpha` keys.
    """

    def __init__(self, name: str, metadata: Mapping[str, str]):
        try:
            self.entries = json_reader.parse(metadata.get("lora_adapter_metadata") or "{}")
            if not isinstance(self.entries, dict):
                raise TypeError("it is not an object")
        except (TypeError, ValueError) as error:
            raise ModelFolderError(
                f"{name}: lora_adapter_metadata in its header cannot be read: {error}"
            ) from error
        self.name = name

    def scale(self, network: str, module: str, rank: int | None) -> float:
        """alpha / rank of a module; 1 where nothing is said."""
        prefix = {"unet": "unet.", "text": "text_encoder."}[network]
        entries = {
            key.removeprefix(prefix): value
            for key, value in self.entries.items()
            if key.startswith(prefix) or "." not in key
        }
        patterns = entries.get("alpha_pattern") or {}
        matching = [
            alpha
            for key, alpha in dict(patterns).items()
            if f".{module}".endswith("." + key.removeprefix("^"))
        ]
        alpha = matching[0] if matching else entries.get("lora_alpha")
        if alpha is None or rank is None:
            return 1.0
        if not isinstance(alpha, int | float):
            raise ModelFolderError(
                f"{self.name}: alpha in its header is {alpha!r}, which is not a number"
            )
        return alpha / (math.sqrt(rank) if entries.get("use_rslora") else rank)


# The kinds of factorisation: arrays in float32 → weight in PyTorch's layout.


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
class _Kind:
    weight: Any
    rank: Any
    roles: tuple[
        str, ...
    ]  # regular expressions, each the whole set of roles, sorted and joined by a blank


_KINDS = {
    "LoRA": _Kind(_lora, lambda x: x["down"].shape[0], ("down up", "down mid up")),
    "LoHa": _Kind(
        _loha,
        lambda x: x["hada_w1_b"].shape[0],
        (
            "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
            "hada_t1 hada_t2 hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        ),
    ),
    "LoKr": _Kind(
        _lokr,
        _lokr_rank,
        (
            "(lokr_t2 )?(lokr_w1|lokr_w1_a lokr_w1_b) lokr_w2_a lokr_w2_b",
            "(lokr_w1|lokr_w1_a lokr_w1_b) lokr_w2",
        ),
    ),
}


def _elements(x: Mapping[str, np.ndarray]) -> int:
    """How many numbers the product has."""
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


def _kind(arrays: Mapping[str, Any]) -> str | None:
    roles = " ".join(sorted(arrays))
    return next(
        (
            name
            for name, kind in _KINDS.items()
            if any(re.fullmatch(pattern, roles) for pattern in kind.roles)
        ),
        None,
    )
