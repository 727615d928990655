"""One configuration type for every size: `mini`, Stable Diffusion 1.5 and anything between.

Plain frozen dataclasses; `to_dict`/`from_dict` turn them into JSON for a model folder's
config.json. Defaults are those of Stable Diffusion 1.5 and CapHuman (CVPR 2024)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, get_args, get_type_hints

from caphuman_jax.config import rules as config_rules
from caphuman_jax.errors import ModelFolderError


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Denoising UNet. `attention_resolutions` are the factors (1, 2, 4 …) at which transformer
    blocks sit.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    attention_resolutions: tuple[int, ...] = (1, 2, 4)
    heads: int = 8
    cross_attention_dim: int = 768
    groups: int = 32


@dataclasses.dataclass(frozen=True)
class CapFaceConfig:
    """Control branch: the UNet's encoder and middle plus a hint encoder with one stride-2 step
    between widths.
    """

    hint_channels: int = 9
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)


@dataclasses.dataclass(frozen=True)
class IdentityConfig:
    """Identity projector and where its inputs come from.

    `recognizer` names the face recognition network that the weights were trained with;
    `image_tokens` is "clip" (CLIP ViT last hidden state) or "recognizer" (its last feature map).
    """

    recognition_width: int = 512
    image_width: int = 1024
    recognizer: str = "facenet"
    image_tokens: str = "clip"


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """KL autoencoder. `patch` > 1 begins and ends with space-to-depth; downsampling = patch *
    2**(len(channel_multipliers)-1).
    """

    image_channels: int = 3
    patch: int = 1
    encoder_channels: int = 128
    decoder_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    latent_channels: int = 4
    groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def downsampling(self) -> int:
        """Picture side over latent side."""
        return self.patch * 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """CLIP text transformer. `embed_width` below `width` stores token embeddings narrow and
    projects them up. `activation`: a name of `nn.layers.ACTIVATIONS`.
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    embed_width: int | None = None
    activation: str = "quick_gelu"


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """CLIP vision transformer (ViT-L/14)."""

    image_size: int = 224
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: str = "quick_gelu"


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule and what is predicted, `prediction_type`: "epsilon" or "v".

    `beta_schedule` is a name of `diffusion.schedule.BETA_SCHEDULES`, as diffusers calls it.
    `zero_terminal_snr`: betas rescaled so that the last step is noise alone (arXiv 2305.08891,
    algorithm 1); needs "v"."""

    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """What a model is best sampled with unless something else is asked for; `eta` (of the sampler
    "ddim") 0 is DDIM, 1 as noisy as DDPM. The three scales of guidance: `diffusion.guidance`.
    """

    sampler: str = "ddim"
    steps: int = 20
    guidance_scale: float = 7.0
    identity_guidance: float = 1.0
    head_guidance: float = 1.0
    spacing: str = "original"
    eta: float = 0.0
    guidance_rescale: float = 0.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes of a model's weights.

    `image_encoder` None: image tokens come from the recognizer. `controlnets` names the ControlNets
    (arXiv 2302.05543) that come with the model, each a network "controlnet_NAME" of the shape that
    `controlnet` gives."""

    name: str = "sd15"
    image_size: int = 512
    unet: UNetConfig = UNetConfig()
    capface: CapFaceConfig = CapFaceConfig()
    controlnets: tuple[str, ...] = ()
    controlnet: CapFaceConfig = CapFaceConfig(hint_channels=3)
    identity: IdentityConfig = IdentityConfig()
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    image_encoder: ImageEncoderConfig | None = ImageEncoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    head: str = "flame"

    @property
    def inpainting(self) -> bool:
        """Whether the UNet also sees a photo and a mask (Stable Diffusion's inpainting bases)."""
        return self.unet.in_channels == 2 * self.vae.latent_channels + 1

    @property
    def control_unet(self) -> UNetConfig:
        """The UNet whose encoder control branches copy: it sees the latents alone."""
        return dataclasses.replace(self.unet, in_channels=self.vae.latent_channels)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`.

        Raises:
            ModelFolderError: an unknown entry, one of the wrong type or out of its range, or
                entries that contradict each other, with the entry, its value and what is allowed.
        """
        config = _build(cls, data, "")
        problem = next(config_rules.contradictions(config), None)
        if problem:
            raise ModelFolderError(f"config: {problem}")
        return config


def _build(cls, fields: Any, where: str):
    """A part of the configuration; `where`: its name and a dot, "" for the whole."""
    if not isinstance(fields, dict):
        raise ModelFolderError(
            f"config of {where.rstrip('.') or 'model'} is {config_rules.shown(fields)}; it must be "
            f"an object"
        )
    kinds = _kinds(cls)
    unknown = sorted(str(name) for name in fields if name not in kinds)
    if unknown:
        raise ModelFolderError(
            f"config of {where.rstrip('.') or 'model'}: unknown entries {', '.join(unknown)}; "
            f"known: {', '.join(sorted(kinds))}"
        )
    values = {}
    for name, value in fields.items():
        part = next(filter(dataclasses.is_dataclass, (kinds[name], *get_args(kinds[name]))), None)
        if part is not None:
            optional = type(None) in get_args(kinds[name])
            values[name] = (
                None if value is None and optional else _build(part, value, f"{where}{name}.")
            )
            continue
        problem = config_rules.model_entry(name, value, kinds[name])
        if problem:
            raise ModelFolderError(
                f"config: {where}{name} is {config_rules.shown(value)}; it {problem}"
            )
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


@functools.cache
def _kinds(cls) -> dict[str, Any]:
    return get_type_hints(cls)


SD15 = ModelConfig()

MINI = ModelConfig(
    name="mini",
    image_size=256,
    head="anny",
    image_encoder=None,
    unet=UNetConfig(
        in_channels=8,
        out_channels=8,
        channels=64,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=1,
        attention_resolutions=(2, 4),
        heads=4,
        cross_attention_dim=128,
        groups=16,
    ),
    capface=CapFaceConfig(hint_widths=(16, 32, 64, 96)),
    identity=IdentityConfig(
        recognition_width=192,
        image_width=512,
        recognizer="mobilefacenet",
        image_tokens="recognizer",
    ),
    vae=VAEConfig(
        patch=2,
        encoder_channels=32,
        decoder_channels=48,
        channel_multipliers=(1, 2, 3),
        blocks_per_level=1,
        latent_channels=8,
        groups=16,
        scaling_factor=1.0,
    ),
    text=TextConfig(width=128, layers=4, heads=4, mlp_width=512, embed_width=16),
    diffusion=DiffusionConfig(prediction_type="v", zero_terminal_snr=True),
    sampling=SamplingConfig(
        steps=12,
        guidance_scale=5.0,
        head_guidance=3.0,
        spacing="trailing",
        eta=1.0,
        guidance_rescale=0.5,
    ),
)
"""The shipped small model: 14.4 M parameters, 256² pictures."""
