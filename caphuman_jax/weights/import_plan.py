"""What an import takes from which file, planned from names and shapes alone.

Whatever does not fit is reported before any weight is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from caphuman_jax.config import SD15, ModelConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.models import registry
from caphuman_jax.weights import convert, sources
from caphuman_jax.weights.checkpoint_files import Checkpoint
from caphuman_jax.weights.names import table
from caphuman_jax.weights.sources import Found, Source

_FLOATS = [
    np.dtype(t)
    for t in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    )
]
_SHOWN = 20  # keys of each kind in a message
PROVIDERS = {
    "unet": ("base", "caphuman"),
    "vae": ("vae", "base", "caphuman"),
    "text": ("clip", "base", "caphuman"),
    "image_encoder": ("image-encoder", "clip", "caphuman"),
    "capface": ("caphuman",),
    "identity": ("caphuman",),
}
"""Network → the options that may give it, the first before the others."""


@dataclasses.dataclass
class Piece:
    """One parameter: where it comes from, and its shape in our layout."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    checkpoint: Checkpoint | None = None
    key: str = ""
    value: np.ndarray | None = None
    scale: str | None = None  # key of what a weight in fp8 is multiplied by

    def read(self) -> np.ndarray:
        if self.value is not None:
            return self.value
        assert self.checkpoint is not None
        array = self.checkpoint[self.key]
        if self.scale is not None:
            scale = self.checkpoint[self.scale].astype(np.float32).reshape(-1)
            array = array.astype(np.float32) * scale.reshape(-1, *[1] * (array.ndim - 1))
        return convert.to_ours(self.path, array, self.shape)


Pieces = dict[str, Piece]


def choose(opened: list[Source], config: ModelConfig, init: bool) -> dict[str, Source]:
    """Network → the source that gives it. Raises ModelFolderError where one is missing."""
    by_option = {source.option: source for source in opened}
    for option, expected in (
        ("caphuman", "capface"),
        ("base", "unet"),
        ("vae", "vae"),
        ("image-encoder", "image_encoder"),
    ):
        if option in by_option and expected not in by_option[option].networks:
            source = by_option[option]
            raise ModelFolderError(
                f"--{option} {source.path} holds no {expected}; it holds {_holds(source)}"
            )
    if "clip" in by_option and not {"text", "image_encoder"} & set(by_option["clip"].networks):
        raise ModelFolderError(
            f"--clip {by_option['clip'].path} holds no CLIP encoder; it holds "
            f"{_holds(by_option['clip'])}"
        )
    chosen, missing = {}, []
    for network, options in PROVIDERS.items():
        if (network == "image_encoder" and config.image_encoder is None) or (
            init and network in ("capface", "identity")
        ):
            continue
        source = next(
            (by_option[o] for o in options if o in by_option and network in by_option[o].networks),
            None,
        )
        if source is None:
            missing.append(f"{network} (give {' or '.join(f'--{o}' for o in options)})")
        else:
            chosen[network] = source
    if missing:
        more = (
            "; --init makes a CapFace and projector that are not trained yet"
            if any(m.startswith("capface") for m in missing)
            else ""
        )
        raise ModelFolderError(f"these parts are missing: {', '.join(missing)}{more}")
    return chosen


def _holds(source: Source) -> str:
    there = sorted(source.networks, key=[*PROVIDERS, *source.networks].index)
    return ", ".join(there) or (
        f"only keys that are not known, such as {source.unknown[0]}"
        if source.unknown
        else "no weights"
    )


def find_controlnets(
    given, opened: list[Source], download: bool
) -> dict[str, tuple[Source, Found]]:
    """Network "controlnet_NAME" → its source and what is there; those of an exported folder come
    along.
    """
    found = {
        name: (source, f)
        for source in opened
        for name, f in source.networks.items()
        if name.startswith("controlnet_")
    }
    for path, name in given:
        source = sources.read("controlnet", path, download)
        opened.append(source)  # so that it is closed
        if "controlnet" not in source.networks:
            raise ModelFolderError(
                f"--controlnet {path} holds no ControlNet; it holds {_holds(source)}"
            )
        network = f"controlnet_{name or control_name(Path(path))}"
        if not re.fullmatch(r"\w[\w.-]*", network) or network in found:
            raise ModelFolderError(
                f"--controlnet {path}: the name {network.removeprefix('controlnet_')!r} is taken "
                f"or not a name; give FILE=NAME"
            )
        found[network] = source, source.networks["controlnet"]
    return found


def control_name(path: Path) -> str:
    """control_v11p_sd15_openpose.pth → openpose."""
    stem = re.sub(r"\W+", "_", path.name if path.is_dir() else path.name.split(".")[0])
    return (
        re.sub(r"^(models_)?(lllyasviel_)?(control(net)?_?)?(v\d+\w*?_)?(sd\d*_)?", "", stem)
        or stem
    )


def merge_config(config, opened, controls, prediction, zero_snr, name, head) -> ModelConfig:
    base = next((s for s in opened if s.option == "base"), None) or next(
        s for s in opened if s.option != "controlnet"
    )
    asked = {"prediction_type": prediction or None, "zero_terminal_snr": zero_snr}
    diffusion = dataclasses.replace(
        config.diffusion,
        **base.diffusion | {name: value for name, value in asked.items() if value is not None},
    )
    if diffusion.zero_terminal_snr and diffusion.prediction_type != "v":
        raise SettingError(
            "zero terminal SNR needs --prediction v: at the last step there is nothing but noise "
            "to predict from noise"
        )
    heads = base.heads or config.unet.heads
    if heads != config.unet.heads:
        raise ModelFolderError(
            f"{base.path} has {heads} attention heads; this configuration has {config.unet.heads}"
        )
    if (
        diffusion.zero_terminal_snr and config.sampling == SD15.sampling
    ):  # such a model has to be asked at the last timestep (arXiv 2305.08891, sections 3.3 and 3.4)
        config = dataclasses.replace(
            config,
            sampling=dataclasses.replace(config.sampling, spacing="trailing", guidance_rescale=0.7),
        )
    channels = sources.unet_inputs(base)
    if channels == 2 * config.vae.latent_channels + 1:  # an inpainting base
        config = dataclasses.replace(
            config, unet=dataclasses.replace(config.unet, in_channels=channels)
        )
    return dataclasses.replace(
        config,
        name=name or config.name,
        head=head,
        controlnets=tuple(n.removeprefix("controlnet_") for n in controls),
        diffusion=diffusion,
    )


def make_plan(
    config: ModelConfig, wanted: Mapping[str, dict], found: Mapping[str, Found], ema: bool
) -> tuple[dict[str, Pieces], set]:
    """Every network's parameters, and the (file, key) that they take. Raises ModelFolderError with
    all that does not fit.
    """
    plan, used, problems, averaged = {}, set(), [], 0
    for network, f in found.items():
        names = table(network, config, wanted[network], f.form)
        keys = dict(f.keys)
        if ema and network in ("unet", "vae"):
            averages = sources.moving_averages(f, list(names), network)
            averaged += len(averages)
            keys |= averages
        missing = [name for name in names if name not in keys]
        surplus = [f.keys[name] for name in f.keys if name not in names]
        misshapen, pieces = [], {}
        for name, path in names.items():
            if name in keys:
                key = keys[name]
                shape, dtype, ours = (
                    f.checkpoint.shape(key),
                    f.checkpoint.dtype(key),
                    tuple(wanted[network][path].shape),
                )
                if not convert.fits(path, shape, ours):
                    misshapen.append(
                        f"{key} {_shape(shape)}, not "
                        f"{_shape(convert.shape_of_theirs(path, name, ours, f.form))}"
                    )
                elif dtype not in _FLOATS:
                    misshapen.append(f"{key} of type {dtype}")
                scale = f.scales.get(name) if key == f.keys[name] else None
                if scale is not None:
                    dtype = np.dtype(np.float32)
                    used.add((f.path, scale))
                    if math.prod(f.checkpoint.shape(scale)) not in (1, shape[0] if shape else 1):
                        misshapen.append(f"{scale} {_shape(f.checkpoint.shape(scale))}")
                pieces[path] = Piece(path, ours, dtype, f.checkpoint, key, scale=scale)
                used.add((f.path, key))
        if missing or surplus or misshapen:
            kind = (
                sources.another_kind(f, config)
                if network == "unet" or network.startswith("controlnet_")
                else None
            )
            if kind:
                raise ModelFolderError(sources.refusal(f.path, kind))
            said = [
                _some("missing", missing),
                _some("surplus", surplus),
                _some("misshapen", misshapen),
            ]
            problems.append(f"{network} of {f.path}: " + "; ".join(filter(None, said)))
        plan[network] = pieces
    if problems:
        raise ModelFolderError("the weights do not fit. " + " | ".join(problems))
    if ema and not averaged:
        raise ModelFolderError(
            "--ema: no file has moving averages (keys that begin with model_ema.) of its UNet or "
            "VAE"
        )
    return plan, used


def check_unknown(opened: list[Source], ignore: Sequence[str]) -> None:
    problems = []
    for source in opened:
        left = [key for key in source.unknown if not key.startswith(tuple(ignore))]
        if left:
            problems.append(f"{source.path}: {_some('surplus', left)}")
    if problems:
        raise ModelFolderError(
            "keys that belong to no network: "
            + " | ".join(problems)
            + " (--ignore PREFIX leaves out what you do not need)"
        )


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"


def fresh_networks(config: ModelConfig, unet: Pieces) -> dict[str, Pieces]:
    """Where training starts: CapFace's encoder a copy of the UNet's
    (`models.capface.start_from_unet`), the rest initialized.
    """

    plan = {}
    for network in registry.TRAINABLE:
        values = flat(registry.init(config, jax.random.key(0), only=(network,))[network][1])
        plan[network] = {
            path: _first_inputs(unet[path], leaf.shape)
            if network == "capface" and path.startswith("encoder.")
            else Piece(path, tuple(leaf.shape), np.dtype(np.float32), value=np.asarray(leaf))
            for path, leaf in values.items()
        }
    return plan


def _first_inputs(piece: Piece, shape: tuple[int, ...]) -> Piece:
    """A piece of the UNet's encoder for a control branch, which sees the latents alone: without the
    channels that an inpainting base's first convolution has for mask and photo.
    """
    if piece.shape == tuple(shape):
        return piece
    value = piece.read()[:, :, : shape[2]]
    return Piece(piece.path, tuple(shape), value.dtype, value=value)


def flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep=".")
