"""Stand-ins for the published weight files: their names and their shapes' form, small and random,
written by PyTorch itself.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from caphuman_jax.config import (
    CapFaceConfig,
    IdentityConfig,
    ImageEncoderConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from caphuman_jax.weights import importer
from caphuman_jax.weights.names import PREFIXES

PARITY = Path(__file__).parents[1] / "parity" / "data"

TINY = ModelConfig(
    name="tiny",
    image_size=64,
    unet=UNetConfig(
        channels=32,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(1, 2),
        heads=4,
        cross_attention_dim=16,
        groups=8,
    ),
    capface=CapFaceConfig(hint_widths=(4, 8, 8, 8)),
    controlnet=CapFaceConfig(hint_channels=3, hint_widths=(4, 8, 8, 8)),
    identity=IdentityConfig(recognition_width=8, image_width=24),
    vae=VAEConfig(encoder_channels=8, decoder_channels=8, groups=4, blocks_per_level=2),
    text=TextConfig(width=16, layers=2, heads=2, mlp_width=32),
    image_encoder=ImageEncoderConfig(image_size=28, width=24, layers=2, heads=2, mlp_width=32),
)
"""The smallest model that has every part; its names are among those of the published files."""


@functools.cache
def names_and_shapes() -> dict[str, list[int]]:
    """caphuman.ckpt's names as the parity folder records them for `small`, and CLIP's, with the
    shapes of TINY.
    """
    recorded = json.loads((PARITY / "small_parameters.json").read_text())
    clip = json.loads((PARITY / "clip_parameters.json").read_text())
    sizes = {320: 32, 640: 64, 960: 96, 1280: 128, 64: 16}  # widths of `small` → TINY
    shapes = {}
    for name, shape in recorded.items():
        if name.startswith("first_stage_model."):  # 32 channels → 8; latents and pictures stay
            shapes[name] = [n // 4 if n >= 32 else n for n in shape]
        elif name.startswith(("id_linear", "img_linear")):
            shapes[name] = [{64: 16, 96: 24, 512: 8}[n] for n in shape]
        elif "input_hint_block" in name or "mask_predict" in name:
            shapes[name] = [{16: 4, 32: 8, 96: 8, 256: 8, 320: 32}.get(n, n) for n in shape]
        elif "attn2.to_k" in name or "attn2.to_v" in name:
            shapes[name] = [shape[0] // 10, 16]
        elif "time_embed" in name or "emb_layers" in name:
            shapes[name] = [n // 10 for n in shape]
        else:
            shapes[name] = [sizes.get(n, n // 10 if n >= 320 else n) for n in shape]
    for part, prefix, widths in (
        ("clip_text", PREFIXES["text"], {768: 16, 3072: 32}),
        ("clip_vision", PREFIXES["image_encoder"], {1024: 24, 4096: 32, 257: 5}),
    ):
        for name, shape in clip[part].items():
            if "layers." not in name or name.split("layers.")[1].split(".")[0] in "01":
                shapes[prefix + name] = [widths.get(n, n) for n in shape]
    return shapes


def value(name: str, shape, seed: int = 0) -> torch.Tensor:
    """A tensor that depends on its name and `seed` alone."""
    return _value(name, tuple(shape), seed)


@functools.cache
def _value(name, shape, seed) -> torch.Tensor:
    numbers = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(
        shape, dtype=np.float32
    )
    return torch.from_numpy(numbers * np.float32(0.2))


@functools.cache
def face_names_and_shapes() -> dict[str, dict[str, list[int]]]:
    """{network of a face: its PyTorch names and shapes} as the parity folder records them."""
    return json.loads((PARITY / "face_network_parameters.json").read_text())


def face_state(network: str) -> dict[str, torch.Tensor]:
    """FaceNet's, face parsing's, MTCNN's or DECA's file with its true names and shapes, all
    zero; the tensors share one storage, so that the file is small.
    """
    shapes = face_names_and_shapes()[network]
    pool = torch.zeros(max(int(np.prod(shape)) for shape in shapes.values()))
    return {name: pool[: int(np.prod(shape))].reshape(shape) for name, shape in shapes.items()}


def import_model(out, **given) -> list[str]:
    """`importer.import_model` of a few networks: without those that read photos, and with the
    shipped head unless another is asked for.
    """
    if not {"head", "deca", "flame"} & given.keys():
        given["head"] = "anny"
    return importer.import_model(out, **{"partial": True} | given)


def state_dict(*prefixes: str, dtype=torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """The whole of caphuman.ckpt in small, or what begins with `prefixes`."""
    return {
        name: value(name, shape, seed).to(dtype)
        for name, shape in names_and_shapes().items()
        if name.startswith(prefixes or "")
    }


EXTRAS = {
    "betas": torch.zeros(10),
    "alphas_cumprod": torch.zeros(10),
    "sqrt_one_minus_alphas_cumprod": torch.zeros(10),
    "logvar": torch.zeros(10),
    "model_ema.decay": torch.tensor(0.999),
    "model_ema.num_updates": torch.tensor(3),
    "cond_stage_model.logit_scale": torch.tensor(1.0),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "control_cond_stage_model.transformer.vision_model.embeddings.position_ids": torch.arange(5)[
        None
    ],
    "first_stage_model.loss.logvar": torch.zeros(()),
}
"""What published files hold besides."""
