"""LoRA files (Hu et al. 2021, arXiv 2106.09685) for the UNet and the text encoder, added to our
parameters.

A file holds, for some of the layers, two narrow matrices whose product is added to the layer's
weight: W + strength · alpha / rank · up @ down. Read are the forms of kohya's sd-scripts (names of
diffusers' or of the original's blocks joined by "_"), of diffusers (attention processors;
`lora_A`/`lora_B` of PEFT; `lora_linear_layer`), PEFT's folders, and the kinds of `lora_kinds`. The
base is never changed: take a LoRA away by going back to it."""

from __future__ import annotations

import dataclasses
import math
import os
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
from caphuman_jax.weights import hub, lora_keys, lora_kinds
from caphuman_jax.weights.checkpoint_files import open_checkpoint
from caphuman_jax.weights.convert import fits, to_ours, to_theirs

NETWORKS = ("unet", "text")
Strength = float | tuple[float, float]
"""One for all, or (of the UNet, of the text encoder)."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a file says of one layer. key: its name there; arrays: by role ("up", "down",
    "hada_w1_a" …), as stored; scale: alpha / rank; magnitude: of a DoRA, for each output or, with
    `by_output` False, for each input.
    """

    key: str
    arrays: dict[str, np.ndarray]
    scale: float
    magnitude: np.ndarray | None = None
    by_output: bool = True

    def check_size(self, name: str, shape: Sequence[int]) -> None:
        """Raise ModelFolderError, which names the file `name`, if a layer of another size than
        `shape` was trained. Nothing is multiplied.
        """
        try:
            count = lora_kinds.elements(self.arrays)
            if count != math.prod(shape):
                raise ValueError(
                    f"a weight of {count:,} numbers, this model's layer is {_theirs(shape)}"
                )
        except ValueError as error:
            raise ModelFolderError(_misfit(name, self.key, error)) from error

    def weight(self) -> np.ndarray:
        """What is added to the layer's weight at strength 1: float32 in PyTorch's layout; a kernel
        may be flat, (out, in·rows·columns).
        """
        arrays = {role: np.asarray(x).astype(np.float32) for role, x in self.arrays.items()}
        kind = lora_kinds.kind_of(arrays)
        assert kind is not None, "checked when the file was read"
        return lora_kinds.KINDS[kind].weight(arrays) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA file as read. name: for messages; parts: network ("unet", "text") → our parameter path
    → part.
    """

    name: str
    parts: dict[str, dict[str, Part]]

    def delta(
        self,
        network: str,
        path: str,
        shape: Sequence[int],
        strength: Strength = 1.0,
        base: Any = None,
    ) -> np.ndarray | None:
        """What is added to the parameter `path` (dotted) of `shape`: float32 in our layout; None
        where nothing is.

        base: the parameter itself (NumPy or JAX), which a DoRA needs: one of strength s goes s of
        the way from the base's weight to its own. Raises ModelFolderError if the file's layer is of
        another shape.
        """
        part, factor = self.parts.get(network, {}).get(path), _strength_of(network, strength)
        if part is None or factor == 0:
            return None
        shape = tuple(shape)
        theirs = _theirs(shape)
        part.check_size(self.name, shape)
        try:
            weight = part.weight()
            if part.magnitude is not None:
                assert base is not None, "a DoRA needs the weight that it changes"
                ours = np.asarray(base).astype(np.float32)
                weight = lora_kinds.decomposed(
                    to_theirs(path, ours, theirs),
                    weight.reshape(theirs),
                    part.magnitude.astype(np.float32),
                    part.by_output,
                )
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
            raise ModelFolderError(_misfit(self.name, part.key, error)) from error
        return to_ours(path, weight, shape) * np.float32(factor)


def _theirs(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one of our kernels in PyTorch's layout."""
    return tuple(shape[::-1]) if len(shape) == 2 else (shape[3], shape[2], *shape[:2])


def _misfit(name: str, key: str, error: ValueError) -> str:
    return (
        f"{name} does not fit: {key}: {error}; it was probably made for another base model (SD 2, "
        f"SDXL …)"
    )


Loras = Iterable[tuple[Lora, Strength]]


def parse(text: str) -> tuple[Path, Strength]:
    """ "style.safetensors:0.8", or "style.safetensors:0.8,0.5" with a strength for the UNet and one
    for the text encoder; without, 1.

    Raises SettingError.
    """
    path, colon, tail = text.rpartition(":")
    # Not `Path.exists`, which raises OSError for a name that is too long.
    if not colon or os.path.exists(text):
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
    """`read` of a .safetensors or PyTorch file, of a folder that PEFT or diffusers wrote (also with
    one of them for each of unet and text_encoder), or of the hub's cache.

    Raises:
        ModelFolderError: the file or folder cannot be read, or see `read`.
    """
    path = hub.locate(path)
    read_ = [_read_one(file, cfg) for file in files(path)]
    if not path.is_dir():
        return read_[0]
    parts: dict[str, dict[str, Part]] = {}
    for one in read_:
        for network, found in one.parts.items():
            parts.setdefault(network, {}).update(found)
    return Lora(path.name, parts)


def files(path: str | os.PathLike) -> list[Path]:
    """The files that `read_file` reads. Raises ModelFolderError for a folder without any."""
    path = hub.locate(path)
    if not path.is_dir():
        return [path]
    inside = [path / name for name in ("unet", "text_encoder") if (path / name).is_dir()]
    return [_file_of(folder) for folder in inside or [path]]


def _file_of(folder: Path) -> Path:
    for name in ("adapter_model", "pytorch_lora_weights"):
        for suffix in (".safetensors", ".bin"):
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    loose = [file for file in folder.iterdir() if file.suffix == ".safetensors"]
    if len(loose) != 1:
        raise ModelFolderError(
            f"{folder} holds no LoRA; looked for adapter_model.safetensors and "
            f"pytorch_lora_weights.safetensors"
        )
    return loose[0]


def _read_one(path: Path, cfg: ModelConfig) -> Lora:
    adapter = None
    if path.name.startswith("adapter_model.") and path.with_name("adapter_config.json").is_file():
        try:
            adapter = json_reader.read(path.with_name("adapter_config.json"))
        except (OSError, ValueError) as error:
            raise ModelFolderError(
                f"{path.with_name('adapter_config.json')} cannot be read: {error}"
            ) from error
        if not isinstance(adapter, dict):
            raise ModelFolderError(f"{path.with_name('adapter_config.json')} is not a JSON object")
    with open_checkpoint(path) as checkpoint:
        # In a PyTorch file alpha may be a plain number.
        alphas = {
            key: np.asarray(x, np.float32)
            for key, x in checkpoint.extra.items()
            if key.endswith(".alpha") and isinstance(x, int | float)
        }
        everything = ChainMap(alphas, cast(MutableMapping, checkpoint))  # only read
        return read(everything, cfg, name=path.name, metadata=checkpoint.metadata, adapter=adapter)


def read(
    checkpoint: Mapping[str, Any],
    cfg: ModelConfig,
    *,
    name: str = "the LoRA",
    metadata: Mapping[str, str] | None = None,
    adapter: Mapping[str, Any] | None = None,
) -> Lora:
    """A LoRA from {key: array}, for the UNet and text encoder of `cfg`.

    metadata: that of a safetensors file, where diffusers writes alpha; adapter: PEFT's
    adapter_config.json; a layer with no alpha anywhere has its rank as alpha. Raises
    ModelFolderError naming every key that is not understood, and by its kind a file that is not a
    LoRA of these kinds."""
    places, arrays = _sorted(checkpoint, cfg, name)
    if adapter is None and any(module.startswith(lora_keys.PEFT) for module in places.values()):
        raise ModelFolderError(
            f"{name} is an adapter saved by PEFT without its alpha; its adapter_config.json has to "
            f"lie next to it, or name the folder of both"
        )
    settings = lora_keys.Settings(name, metadata or {}, adapter)
    parts: dict[str, dict[str, Part]] = {}
    for (network, path), roles in arrays.items():
        module = places[network, path]
        alpha = roles.pop("alpha", None)
        of_kohya, of_peft = roles.pop("dora_scale", None), roles.pop("lora_magnitude_vector", None)
        kind = lora_kinds.kind_of(roles)
        if kind is None:
            raise ModelFolderError(
                f"{name} is incomplete: of {module} it has only {', '.join(roles) or 'alpha'}"
            )
        rank = lora_kinds.KINDS[kind].rank(roles)
        if alpha is None:
            scale = settings.scale(network, module, rank)
        else:
            scale = 1.0 if rank is None else alpha.astype(np.float32).item() / rank
        # LyCORIS: (out, 1, …), or (1, in, …) where norms are those of the inputs.
        by_output = of_kohya is None or of_kohya.ndim < 2 or of_kohya.shape[0] != 1
        magnitude = of_kohya if of_kohya is not None else of_peft
        parts.setdefault(network, {})[path] = Part(module, roles, scale, magnitude, by_output)
    return Lora(name, parts)


_SINGLE = ("alpha",)
_VECTORS = ("dora_scale", "lora_magnitude_vector")


def _sorted(
    checkpoint: Mapping[str, Any], cfg: ModelConfig, name: str
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], dict[str, Any]]]:
    """(network, our path) → the module's name there, and → its arrays by role."""
    lookup = {network: lora_keys.lookup(network, cfg) for network in NETWORKS}
    places: dict[tuple[str, str], str] = {}
    arrays: dict[tuple[str, str], dict[str, Any]] = {}
    unknown = []
    for key in checkpoint:
        if key.startswith("bundle_emb."):  # words of its own, see `weights.embeddings`
            continue
        lora_keys.refuse(key, name)
        found = next(filter(None, (form.fullmatch(key) for form in lora_keys.KEYS)), None)
        place = lora_keys.place(found["module"], lookup) if found else None
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
        dimensions = 1 if role in _VECTORS else 2
        if array.size != 1 if role in _SINGLE else array.ndim < dimensions or array.size == 0:
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
    return places, arrays


def check(params: Mapping[str, Any], loras: Loras) -> None:
    """Raise ModelFolderError if a LoRA (of a strength that is not 0) adds to a network or layer
    that is not in `params`, or to one of another size.

    params: {network: nested dicts with `.shape` leaves}.
    """
    paths = {
        network: traverse_util.flatten_dict(params[network], sep=".")
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
            for path, part in parts.items():
                part.check_size(lora.name, cast(Any, paths[network][path]).shape)


def merged(network: str, path: str, array: Any, loras: Loras) -> Any:
    """One parameter with LoRAs added: summed in float32, then of the array's type again; the array
    itself where nothing is added.

    array: numpy or JAX array in our layout; what comes back is of the same kind, and on the same
    devices."""
    total = None
    for lora, strength in loras:
        delta = lora.delta(network, path, array.shape, strength, array)
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
