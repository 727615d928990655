"""What is in the weight files that people have: which networks, in which form of names, and what
else.

A key of a file belongs to a network, or to one of the known extras (`EXTRAS`), or is unknown;
nothing is passed over."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io import json_reader
from caphuman_jax.weights import folder_description, hub, scheduler_settings
from caphuman_jax.weights.checkpoint_files import Checkpoint, open_checkpoint
from caphuman_jax.weights.names import PREFIXES, modern_name

EXTRAS = {
    "noise schedule": r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod"
    r"|posterior_\w+|logvar|lvlb_weights|scale_factor)",
    "moving averages (--ema uses them)": r"model_ema\..+",
    "the VAE's training loss": r"(first_stage_model\.)?loss\..+",
    "position numbers": r"(.+\.)?position_ids",
    "CLIP's projections": r"(.+\.)?(logit_scale|(text|visual)_projection(\.weight)?)",
    "prediction kind": r"v_pred|ztsnr",
    "control strengths": r"control_scales",
    "scales of fp8 inputs": r"(.+\.)?(scaled_fp8|scale_input|input_scale)",
}
"""What published files hold besides weights of the networks: what it is → regular expression of
whole keys. It is left out.
"""

FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "text_encoder": "text",
    "capface": "capface",
    "identity": "identity",
    "image_encoder": "image_encoder",
}
"""Folder of a diffusers pipeline (the last three: of ours) → network."""


@dataclass
class Found:
    """A network in a file. keys: its names without prefix, as in `names.table` → key; form: "ldm"
    or "diffusers"; scales: the same names of weights in scaled fp8 → key of what they are
    multiplied by.
    """

    checkpoint: Checkpoint
    form: str
    keys: dict[str, str]
    scales: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.checkpoint.path


@dataclass
class Source:
    """A file or folder and what it was given as. networks: name → Found; extras: group → keys;
    unknown: keys that belong to nothing; diffusion: fields of `DiffusionConfig` that it decides.
    """

    option: str
    path: Path
    label: str = ""  # for reports: the file's name, or the hub's
    networks: dict[str, Found] = field(default_factory=dict)
    extras: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    diffusion: dict[str, Any] = field(default_factory=dict)
    config: ModelConfig | None = None  # of a file that was exported from here; also the next
    trained_with_head: str | None = None
    tokenizer: Path | None = None
    heads: int | None = None
    described: dict[str, dict[str, Any]] = field(default_factory=dict)  # network → its config.json
    vae_scale: float | None = None

    def close(self) -> None:
        for checkpoint in self.checkpoints:
            checkpoint.close()


def read(option: str, path: str | Path, download: bool = False) -> Source:
    """Open what was given as `option` (caphuman, base, vae, clip, image-encoder, controlnet): a
    path, or a name of the hub, see `hub.locate`. Raises ModelFolderError.
    """
    label = str(path) if hub.is_name(path) else Path(path).name
    path = hub.locate(path, download)
    source = Source(option, path, label)
    try:
        if path.is_dir() and any((path / name).is_dir() for name in FOLDERS):
            _read_pipeline(source)
        else:
            _read_weights(source, open_checkpoint(path))
            if path.is_dir():
                _describe(source, path)
            if path.is_dir() and option == "clip" and (path / "vocab.json").is_file():
                source.tokenizer = path
            if path.is_dir() and option == "vae":
                source.vae_scale = _json(path / "config.json").get("scaling_factor")
    except BaseException:
        source.close()
        raise
    return source


def _read_pipeline(source: Source) -> None:
    """A diffusers folder: one folder a network."""
    wanted = {
        "vae": {"vae"},
        "clip": {"text_encoder", "image_encoder"},
        "image-encoder": {"image_encoder"},
    }.get(source.option, FOLDERS)
    for folder in sorted(source.path.iterdir()):
        network = folder.name if folder.name.startswith("controlnet_") else FOLDERS.get(folder.name)
        if (
            network is None
            or not folder.is_dir()
            or (folder.name not in wanted and not network.startswith("controlnet_"))
        ):
            continue
        if source.option == "base" and folder.name == "image_encoder":
            continue  # of another use: diffusers' own image prompts
        _read_weights(source, open_checkpoint(folder), network)
        source.described[network] = _json(folder / "config.json")
    if "unet" in source.networks:
        _check_heads(source)
    source.vae_scale = _json(source.path / "vae" / "config.json").get("scaling_factor")
    if (source.path / "tokenizer" / "vocab.json").is_file():
        source.tokenizer = source.path / "tokenizer"
    scheduler = _json(source.path / "scheduler" / "scheduler_config.json")
    if scheduler:
        source.diffusion = scheduler_settings.from_diffusers(scheduler, source.path)
    exported = _json(source.path / "caphuman.json")
    if exported:
        _take_description(source, source.path / "caphuman.json", exported)


def _describe(source: Source, folder: Path) -> None:
    """config.json of a folder that is one network, or CLIP with both of its encoders."""
    whole = _json(folder / "config.json")
    for network in source.networks:
        own = whole.get({"text": "text_config", "image_encoder": "vision_config"}.get(network, ""))
        source.described[network] = own if isinstance(own, dict) else whole
    if "unet" in source.networks:
        _check_heads(source)


def _check_heads(source: Source) -> None:
    described = source.described.get("unet", {})
    heads = described.get("attention_head_dim", 8)
    if (
        isinstance(heads, list)
        or described.get("use_linear_projection")
        or described.get("addition_embed_type")
    ):
        kind = "SDXL" if described.get("addition_embed_type") else "Stable Diffusion 2"
        raise ModelFolderError(
            f"{source.path} is {kind}; only Stable Diffusion 1 and what was trained from it can be "
            f"used"
        )
    source.heads = heads


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json_reader.read(path)
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} cannot be read: it is not a JSON object")
    return content


def _read_weights(source: Source, checkpoint: Checkpoint, network: str | None = None) -> None:
    """Sort a file's keys. network: what its bare names belong to; None: by the option, and by the
    names themselves.
    """
    source.checkpoints.append(checkpoint)
    keys = list(checkpoint)
    if network is None and any(key.startswith("module.") for key in keys):
        raise ModelFolderError(
            f"{checkpoint.path} has keys that begin with module., as saved from DataParallel; save "
            f"model.module instead"
        )
    if network is None:
        _refuse_kinds(checkpoint)
    control = (
        "capface"
        if any(re.fullmatch(r"(control_model\.)?mask_predict\..+", key) for key in keys)
        else "controlnet"
    )
    inner: dict[str, dict[str, str]] = {}
    for key in keys:
        group = next(
            (group for group, pattern in EXTRAS.items() if re.fullmatch(pattern, key)), None
        )
        if group is not None:
            source.extras.setdefault(group, []).append(key)
            continue
        place = (network, key) if network else _place(key, source.option, control, keys)
        if place is None:
            source.unknown.append(key)
        else:
            inner.setdefault(place[0], {})[place[1]] = key
    for name, found in inner.items():
        form = (
            "diffusers"
            if any(re.match(r"((en|de)coder\.)?(down|up|mid)_block", part) for part in found)
            else "ldm"
        )
        scales = _take_scales(found)
        modern = {modern_name(part, name): key for part, key in found.items()}
        scales = {modern_name(part, name): key for part, key in scales.items()}
        if len(modern) != len(found):
            raise ModelFolderError(
                f"{checkpoint.path} holds {name} twice, under two kinds of names"
            )
        source.networks[name] = Found(checkpoint, form, modern, scales)
    if "v_pred" in checkpoint or checkpoint.metadata.get("modelspec.prediction_type") == "v":
        source.diffusion = {"prediction_type": "v", "zero_terminal_snr": "ztsnr" in checkpoint}
    if "caphuman_jax" in checkpoint.metadata:
        try:
            described = json_reader.parse(checkpoint.metadata["caphuman_jax"])
        except (ValueError, TypeError) as error:
            raise ModelFolderError(
                f"{checkpoint.path}: the configuration in its header cannot be read: {error}"
            ) from error
        _take_description(source, checkpoint.path, described)


_OTHER_KINDS = (
    (
        r"difference",
        "a ControlNet that is stored as a difference from its base (it has the key difference); "
        "take the whole ControlNet",
    ),
    (r"lora_controlnet", "a Control-LoRA; take a whole ControlNet"),
    (r"(adapter\.)?body\.\d+\..+", "a T2I-Adapter, which is not a ControlNet; take a ControlNet"),
    (r"(image_proj|ip_adapter)(\..+)?", "an IP-Adapter, which CapHuman's identity replaces"),
    (
        r".*[._](lora_(down|up|A|B)|hada_w1_a|lokr_w[12](_a)?)(\..+)?",
        "a LoRA; give it with --lora",
    ),
    (r"string_to_param\..+|emb_params", "an embedding; give it to generate with --embedding"),
)
"""Files that look like a network's by some of their keys: a key's form, and what they are."""


def _refuse_kinds(checkpoint: Checkpoint) -> None:
    for form, kind in _OTHER_KINDS:
        if any(re.fullmatch(form, key) for key in checkpoint):
            raise ModelFolderError(f"{checkpoint.path} is {kind}")


def _take_scales(found: dict[str, str]) -> dict[str, str]:
    """Removes the scales of fp8 weights from the keys of a network; {name of the weight: key}."""
    scales = {}
    for name in list(found):
        base = re.sub(r"\.(scale_weight|weight_scale)$", ".weight", name)
        if base != name and base in found:
            scales[base] = found.pop(name)
    return scales


def _take_description(source: Source, path: Path, described: Any) -> None:
    """What `caphuman export` writes of a model's configuration."""
    try:
        folder_description.check_complete(described["config"])
        source.config = ModelConfig.from_dict(described["config"])
        source.trained_with_head = described["trained_with_head"]
    except ModelFolderError as error:
        raise ModelFolderError(f"{path}: the configuration in it is wrong: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFolderError(
            f"{path}: the configuration in it cannot be read: {error!r}"
        ) from error


def _place(key: str, option: str, control: str, keys: list[str]) -> tuple[str, str] | None:
    """(network, name without prefix) of a key of a single file."""
    for network, prefix in PREFIXES.items():
        if prefix and key.startswith(prefix):
            return (control if network in ("capface", "controlnet") else network), key.removeprefix(
                prefix
            )
    if re.match(r"(id|img)_linear\.", key):
        return "identity", key
    if option in ("clip", "image-encoder"):
        if key.startswith("text_model."):
            return "text", key
        if key.startswith("vision_model."):
            return "image_encoder", key
        if re.match(r"(embeddings|encoder|final_layer_norm|pre_layrnorm|post_layernorm)\.", key):
            return ("image_encoder" if "embeddings.class_embedding" in keys else "text"), key
        return None
    bare = {
        "base": (
            "unet",
            r"(time_embed|input_blocks|middle_block|output_blocks|out|time_embedding|(down|up|mid)_block|conv_)",
        ),
        "vae": ("vae", r"(encoder|decoder|quant_conv|post_quant_conv)\."),
        "controlnet": (
            "controlnet",
            r"(time_embed|input_|middle_block|zero_convs|conv_in|(down|mid)_block|controlnet_)",
        ),
    }.get(option)
    return (bare[0], key) if bare and re.match(bare[1], key) else None


DISTILLED = "a guidance-distilled model (LCM)"


def refusal(path: Path, kind: str) -> str:
    """Why a file of `another_kind` cannot be used, and what can."""
    advice = "only Stable Diffusion 1 and what was trained from it can be used"
    if kind == DISTILLED:
        advice = (
            "its UNet takes the guidance as an input (time_cond_proj_dim). Take the model that it "
            "was made from, and the LCM-LoRA with --lora"
        )
    return f"{path} is {kind}; {advice}"


def moving_averages(found: Found, names: list[str], network: str) -> dict[str, str]:
    """{name: key of its moving average}: LDM's `model_ema.` followed by the name as its module
    knows it, without dots.
    """
    top = "diffusion_model." if network == "unet" else ""
    keys = {name: "model_ema." + (top + name).replace(".", "") for name in names}
    return {name: key for name, key in keys.items() if key in found.checkpoint}


def unet_inputs(source: Source) -> int | None:
    """Channels that the UNet of a source sees; None where it holds none."""
    found = source.networks.get("unet")
    if found is None:
        return None
    names = ("input_blocks.0.0.weight", "conv_in.weight")
    key = next((found.keys[name] for name in names if name in found.keys), None)
    return None if key is None else found.checkpoint.shape(key)[1]


def another_kind(found: Found, cfg: ModelConfig) -> str | None:
    """What a UNet or ControlNet is if it is not of this configuration's kind, as far as its shapes
    tell.
    """
    shape = found.checkpoint.shape
    if any(name.endswith(".cond_proj.weight") for name in found.keys):
        return DISTILLED
    for key in found.checkpoint:
        for start, kind in (
            ("conditioner.embedders.", "SDXL"),
            ("cond_stage_model.model.", "Stable Diffusion 2"),
            ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
            ("model.diffusion_model.double_blocks.", "FLUX"),
        ):
            if key.startswith(start):
                return kind
    for name, key in found.keys.items():
        sizes = shape(key)
        if (
            name.endswith("attn2.to_k.weight")
            and len(sizes) == 2
            and sizes[1] != cfg.unet.cross_attention_dim
        ):
            return {1024: "Stable Diffusion 2", 2048: "SDXL"}.get(
                sizes[1], f"a model with text of width {sizes[1]}"
            )
        if (
            name in ("input_blocks.0.0.weight", "conv_in.weight")
            and len(sizes) == 4
            and sizes[1] not in (cfg.unet.in_channels, cfg.vae.latent_channels)
        ):
            return {9: "an inpainting model", 8: "an editing model (InstructPix2Pix)"}.get(
                sizes[1], f"a model with {sizes[1]} input channels"
            )
    return None
