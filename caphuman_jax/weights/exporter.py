"""`export_model`: a model folder → the files that PyTorch programs read, bit for bit what was
imported with dtype "keep".
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from caphuman_jax.config import CapFaceConfig, ModelConfig, UNetConfig
from caphuman_jax.errors import CapHumanError, ModelFolderError, SettingError
from caphuman_jax.io import atomic, safetensors_file
from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import guarded
from caphuman_jax.weights import convert, model_folder, scheduler_settings, tokenizer_files
from caphuman_jax.weights.names import prefix, table

DTYPES = {
    "keep": None,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_NOT_OURS = (
    "facenet",
    "face_parsing",
    "mtcnn_pnet",
    "mtcnn_rnet",
    "mtcnn_onet",
    "deca_encoder",
    "clip_projections",
)  # have files of their own from elsewhere
_FOLDERS = {"text": "text_encoder"}
_TRANSFORMERS = ("text", "image_encoder")
_VERSION = "0.30.0"  # of diffusers, whose configurations these are


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One tensor on its way out. name: there; path: here; shape: there."""

    name: str
    network: str
    path: str
    stored: safetensors_file.Tensor
    shape: tuple[int, ...]

    def read(self, dtype: np.dtype) -> np.ndarray:
        return model_folder.cast(
            convert.to_theirs(self.path, self.stored.read(), self.shape),
            dtype,
            f"{self.network}: {self.path}",
        )


_PART_OF = "caphuman_jax.part_of"
"""In the header of a ControlNet's file: the name of the file that is renamed after it, so that one
whose writer was killed between the two is known."""
_HIDDEN_ACT = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Activations as transformers calls them."""


def export_model(
    model: str | Path, out: str | Path, to: str, *, dtype: str = "keep", overwrite: bool = False
) -> list[str]:
    """Write a model folder for PyTorch programs.

    Args:
        model: A shipped model's name, or a model folder.
        out: The file (ending in .safetensors) or folder to write.
        to: "ldm" for one safetensors file with caphuman.ckpt's names, and one next to it per
            ControlNet; "diffusers" for a folder that `StableDiffusionPipeline.from_pretrained`
            reads and that also holds capface, identity and image_encoder.
        dtype: "keep", "float32", "float16" or "bfloat16".
        overwrite: Replace what exists.

    Returns:
        The report, line by line.

    Raises:
        ModelFolderError: The model folder is missing or damaged, `out` exists, or a network has no
            such names.
        SettingError: An unknown dtype, or a file name that does not end in .safetensors.
    """
    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype}; there are {', '.join(DTYPES)}")
    path, out = model_folder.find_model(model), Path(out).expanduser()
    model_folder.verify_model(path)
    config = model_folder.read_config(path)
    with model_folder.stored_networks(path) as networks:
        left_out = [name for name in networks if name in _NOT_OURS]
        weights = {
            name: _weights(name, config, tensors, to)
            for name, tensors in networks.items()
            if name not in _NOT_OURS
        }
        write = {"ldm": _write_ldm, "diffusers": _write_diffusers}[to]
        lines = write(path, out, config, weights, DTYPES[dtype], overwrite)
    return lines + [f"not exported: {name}" for name in left_out]


def _weights(
    network: str, config: ModelConfig, tensors: Mapping[str, safetensors_file.Tensor], form: str
) -> list[_Weight]:
    names = table(network, config, tensors, form)
    unnamed = sorted(set(tensors) - set(names.values()))
    if unnamed:
        raise ModelFolderError(
            f"{network} has weights that have no name elsewhere: {', '.join(unnamed[:20])}"
        )
    return [
        _Weight(
            prefix(network, form) + name,
            network,
            path,
            tensors[path],
            convert.shape_of_theirs(path, name, tensors[path].shape, form),
        )
        for name, path in names.items()
    ]


def _write(file: Path, weights: list[_Weight], dtype: Any, metadata: dict[str, str]) -> str:
    specs = {
        weight.name: (np.dtype(dtype or weight.stored.dtype), weight.shape) for weight in weights
    }
    by_name = {weight.name: weight for weight in weights}

    def arrays() -> Iterator[np.ndarray]:
        for name in safetensors_file.order(specs):
            yield by_name[name].read(specs[name][0])

    written = safetensors_file.write(file, specs, arrays(), {"format": "pt"} | metadata)
    return f"{len(specs)} tensors, {written['bytes'] / 2**30:.2f} GiB"


def _write_ldm(
    path, out: Path, config: ModelConfig, weights: dict[str, list[_Weight]], dtype, overwrite: bool
) -> list[str]:
    if out.suffix != ".safetensors":
        why = (
            "; pickles (.ckpt, .pth) can run code when they are read, so none are written"
            if out.suffix in (".ckpt", ".pt", ".pth", ".bin")
            else ""
        )
        raise SettingError(f"{out}: the name of an LDM file must end in .safetensors{why}")
    controls = {name: part for name, part in weights.items() if name.startswith("controlnet_")}
    parts = {
        out: [weight for name, part in weights.items() if name not in controls for weight in part]
    }
    parts |= {out.with_suffix(f".{name}.safetensors"): part for name, part in controls.items()}
    there = [
        file for file in parts if file.exists() and (out.exists() or _part_of(file) != out.name)
    ]
    if there and not overwrite:
        raise ModelFolderError(f"{there[0]} exists already; choose another name or add --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    described = {"caphuman_jax": json.dumps(_description(path, config))}
    lines = []
    with contextlib.ExitStack() as stack:  # they are renamed at the end, `out` last
        for file, part in parts.items():
            place = stack.enter_context(atomic.file(file))
            facts = described if file == out else {_PART_OF: out.name}
            lines.append(f"{file}: {_write(place, part, dtype, facts)}")
    return lines


def _part_of(file: Path) -> str | None:
    """The name of the file that this one was written with; None of a file that is not ours."""

    def read() -> str | None:
        stored = File(file)
        try:
            return safetensors_file.read_header(stored)[1].get(_PART_OF)
        finally:
            stored.close()

    try:
        return guarded(file, read)
    except (CapHumanError, OSError):
        return None


def _write_diffusers(
    path, out: Path, config: ModelConfig, weights: dict[str, list[_Weight]], dtype, overwrite: bool
) -> list[str]:
    described = _described(config)
    lines, written = [], []
    with model_folder.writing(
        out,
        overwrite=overwrite,
        kind="diffusers folder that caphuman export wrote",
        marker="caphuman.json",
        ours=_is_ours,
    ) as folder:
        for name, part in weights.items():
            place = folder / _FOLDERS.get(name, name)
            place.mkdir()
            file = place / (
                "model.safetensors"
                if name in _TRANSFORMERS
                else "diffusion_pytorch_model.safetensors"
            )
            lines.append(f"{out / place.name}: {_write(file, part, dtype, {})}")
            kind = "controlnet" if name.startswith("controlnet_") else name
            written += [file, _json(place / "config.json", described[kind])]
        (folder / "scheduler").mkdir()
        written.append(_json(folder / "scheduler" / "scheduler_config.json", _scheduler(config)))
        stored = model_folder.tokenizer_files(path)
        written += tokenizer_files.write(folder / "tokenizer", stored and stored[0].parent)
        written.append(_json(folder / "caphuman.json", _description(path, config)))
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": _VERSION,
            "requires_safety_checker": False,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
        }
        written.append(_json(folder / "model_index.json", index))
        model_folder.check_written(folder, written)
    return lines


_OURS = re.compile(
    r"(unet|vae|text_encoder|image_encoder|capface|identity|controlnet_[^/]+)/"
    r"(config\.json|model\.safetensors|diffusion_pytorch_model\.safetensors)"
    r"|scheduler/scheduler_config\.json|tokenizer/[^/]+|caphuman\.json|model_index\.json"
)


def _is_ours(path: Path) -> bool:
    """Whether a file of a diffusers folder is one that is written here."""
    return bool(_OURS.fullmatch(path.as_posix()))


def _description(path: Path, config: ModelConfig) -> dict[str, Any]:
    """What import needs to know; ControlNets are named by their files."""
    trained = model_folder.read_metadata(path).get("trained_with_head", config.head)
    return {
        "config": dataclasses.replace(config, controlnets=()).to_dict(),
        "trained_with_head": trained,
    }


def _json(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file


def _described(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The config.json of each network. Raises ModelFolderError for what these programs' networks do
    not have.
    """
    vae, text, unet = config.vae, config.text, config.unet
    if (
        vae.patch != 1
        or vae.encoder_channels != vae.decoder_channels
        or text.embed_width not in (None, text.width)
    ):
        raise ModelFolderError(
            f"{config.name} has networks that diffusers does not: its autoencoder or text encoder "
            f"is built differently; --to ldm works"
        )
    return {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            **_encoder(config),
            "out_channels": unet.out_channels,
            "center_input_sample": False,
            "sample_size": config.image_size // vae.downsampling,
            "up_block_types": [
                "CrossAttnUpBlock2D" if attends else "UpBlock2D"
                for attends in reversed(_attends(unet))
            ],
        },
        "capface": _control(config, config.capface, "CapFace"),
        "controlnet": _control(config, config.controlnet, "ControlNetModel"),
        "identity": {
            "_class_name": "IdentityProjector",
            **dataclasses.asdict(config.identity),
            "width": unet.cross_attention_dim,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": _VERSION,
            "act_fn": "silu",
            "block_out_channels": [vae.encoder_channels * m for m in vae.channel_multipliers],
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.channel_multipliers),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.channel_multipliers),
            "in_channels": vae.image_channels,
            "out_channels": vae.image_channels,
            "latent_channels": vae.latent_channels,
            "layers_per_block": vae.blocks_per_level,
            "norm_num_groups": vae.groups,
            "sample_size": config.image_size,
            "scaling_factor": vae.scaling_factor,
        },
        "text": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.length,
            "projection_dim": text.width,
            **_clip(text),
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
        },
        "image_encoder": {}
        if config.image_encoder is None
        else {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "image_size": config.image_encoder.image_size,
            "patch_size": config.image_encoder.patch,
            "num_channels": 3,
            **_clip(config.image_encoder),
        },
    }


def _attends(unet: UNetConfig) -> list[bool]:
    return [
        2**level in unet.attention_resolutions for level in range(len(unet.channel_multipliers))
    ]


def _encoder(config: ModelConfig) -> dict[str, Any]:
    """What UNet and ControlNet have in common. attention_head_dim is, in spite of its name, the
    number of heads.
    """
    unet = config.unet
    return {
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "attention_head_dim": unet.heads,
        "block_out_channels": [unet.channels * m for m in unet.channel_multipliers],
        "cross_attention_dim": unet.cross_attention_dim,
        "down_block_types": [
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in _attends(unet)
        ],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.blocks_per_level,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": unet.groups,
    }


def _control(config: ModelConfig, cfg: CapFaceConfig, kind: str) -> dict[str, Any]:
    return {
        "_class_name": kind,
        **_encoder(config),
        "in_channels": config.vae.latent_channels,
        "conditioning_channels": cfg.hint_channels,
        "conditioning_embedding_out_channels": list(cfg.hint_widths),
        "controlnet_conditioning_channel_order": "rgb",
    }


def _clip(cfg) -> dict[str, Any]:
    return {
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "hidden_act": _HIDDEN_ACT[cfg.activation],
        "layer_norm_eps": 1e-5,
    }


def _scheduler(config: ModelConfig) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _VERSION,
        **scheduler_settings.to_diffusers(config.diffusion),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
