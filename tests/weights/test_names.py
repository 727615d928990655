"""Names against those that diffusers' own networks and the recorded checkpoint have: the same set,
nothing more, nothing less.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from flax import traverse_util

from caphuman_jax.config import MINI, SD15, CapFaceConfig, ModelConfig, UNetConfig, VAEConfig
from caphuman_jax.models import registry
from caphuman_jax.weights.names import FORMS, PREFIXES, modern_name, prefix, table

PARITY = Path(__file__).parents[1] / "parity" / "data"
TINY = ModelConfig(
    unet=UNetConfig(
        channels=32,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=1,
        attention_resolutions=(2,),
        heads=4,
        cross_attention_dim=24,
        groups=8,
    ),
    capface=CapFaceConfig(hint_widths=(4, 8, 12)),
    controlnet=CapFaceConfig(hint_channels=3, hint_widths=(4, 8)),
    vae=VAEConfig(
        encoder_channels=16,
        decoder_channels=16,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=1,
        groups=8,
    ),
    controlnets=("pose",),
    image_encoder=None,
)
DEEP = ModelConfig(
    unet=UNetConfig(
        channels=16,
        channel_multipliers=(1, 1, 2, 3),
        blocks_per_level=3,
        attention_resolutions=(1, 4, 8),
        heads=2,
        cross_attention_dim=8,
        groups=8,
    ),
    vae=VAEConfig(
        encoder_channels=8,
        decoder_channels=8,
        channel_multipliers=(1, 2, 3, 4, 5),
        blocks_per_level=3,
        groups=8,
    ),
    controlnets=("pose",),
)
FULL = ModelConfig(controlnets=("pose",))


def sizes(cfg, network, form):
    """{PyTorch name: number of elements} that our network would be filled from."""
    paths = traverse_util.flatten_dict(registry.abstract(cfg, only=(network,))[network][1], sep=".")
    names = table(network, cfg, paths, form)
    assert sorted(names.values()) == sorted(paths)
    return {name: math.prod(paths[path].shape) for name, path in names.items()}


def theirs(module):
    return {name: tensor.numel() for name, tensor in module.state_dict().items()}


def unet_settings(cfg):
    attends = [
        2**level in cfg.attention_resolutions for level in range(len(cfg.channel_multipliers))
    ]
    return dict(
        in_channels=cfg.in_channels,
        block_out_channels=[cfg.channels * m for m in cfg.channel_multipliers],
        layers_per_block=cfg.blocks_per_level,
        down_block_types=["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attends],
        cross_attention_dim=cfg.cross_attention_dim,
        attention_head_dim=cfg.heads,
        norm_num_groups=cfg.groups,
    ), ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attends)]


@pytest.mark.parametrize("cfg", [TINY, DEEP, FULL], ids=["tiny", "deep", "full"])
class TestDiffusers:
    def test_unet(self, cfg):
        from diffusers import UNet2DConditionModel

        settings, up = unet_settings(cfg.unet)
        with torch.device("meta"):
            module = UNet2DConditionModel(
                **settings, up_block_types=up, out_channels=cfg.unet.out_channels
            )
        assert sizes(cfg, "unet", "diffusers") == theirs(module)

    def test_controlnet_and_capface(self, cfg):
        from diffusers import ControlNetModel

        settings, _ = unet_settings(cfg.unet)
        for network, hint in (("controlnet_pose", cfg.controlnet), ("capface", cfg.capface)):
            with torch.device("meta"):
                module = ControlNetModel(
                    **settings,
                    conditioning_channels=hint.hint_channels,
                    conditioning_embedding_out_channels=hint.hint_widths,
                )
            ours = sizes(cfg, network, "diffusers")
            mask = {name: ours.pop(name) for name in list(ours) if name.startswith("mask_predict.")}
            assert ours == theirs(module)
            width = cfg.unet.channels
            assert mask == (
                {"mask_predict.0.weight": 9 * width, "mask_predict.0.bias": 1}
                if network == "capface"
                else {}
            )

    def test_vae(self, cfg):
        from diffusers import AutoencoderKL

        vae = cfg.vae
        levels = len(vae.channel_multipliers)
        with torch.device("meta"):
            module = AutoencoderKL(
                block_out_channels=[vae.encoder_channels * m for m in vae.channel_multipliers],
                layers_per_block=vae.blocks_per_level,
                norm_num_groups=vae.groups,
                latent_channels=vae.latent_channels,
                down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels,
            )
        assert sizes(cfg, "vae", "diffusers") == theirs(module)


@pytest.mark.parametrize("network", ["unet", "capface", "identity", "vae"])
def test_ldm_names_are_those_of_the_checkpoint(network):
    recorded = {
        name: math.prod(shape)
        for name, shape in json.loads((PARITY / "full_parameters.json").read_text()).items()
    }
    first = ("id_linear.", "img_linear.") if network == "identity" else (PREFIXES[network],)
    ours = {prefix(network) + name: size for name, size in sizes(SD15, network, "ldm").items()}
    assert ours == {name: size for name, size in recorded.items() if name.startswith(first)}


def test_a_controlnet_has_capfaces_names_but_for_the_mask():
    """The names in control_v11p_sd15_openpose.pth: the control_model of the code that CapHuman is
    built on.
    """
    ours = {prefix("controlnet_pose") + name for name in sizes(FULL, "controlnet_pose", "ldm")}
    recorded = {
        name
        for name in json.loads((PARITY / "full_parameters.json").read_text())
        if name.startswith("control_model.")
    }
    assert recorded - ours == {
        "control_model.mask_predict.0.weight",
        "control_model.mask_predict.0.bias",
    }
    assert ours < recorded


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("network", "part"), [("text", "clip_text"), ("image_encoder", "clip_vision")]
)
def test_clip_has_transformers_names_in_both_forms(network, part, form):
    recorded = json.loads((PARITY / "clip_parameters.json").read_text())[part]
    assert set(sizes(SD15, network, form)) == {
        name for name in recorded if not name.endswith("position_ids")
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_network_of_the_small_model_has_names(form):
    for network in registry.abstract(MINI):
        assert sizes(MINI, network, form)


def test_prefixes():
    assert prefix("controlnet_anything") == prefix("capface") == "control_model."
    assert {prefix(network, "diffusers") for network in PREFIXES} == {""}


def test_early_and_late_names_are_understood():
    attention = "encoder.mid_block.attentions.0."
    early = ("query.weight", "key.bias", "value.weight", "proj_attn.bias", "group_norm.weight")
    today = ("to_q.weight", "to_k.bias", "to_v.weight", "to_out.0.bias", "group_norm.weight")
    assert [modern_name(attention + name) for name in early] == [attention + name for name in today]
    for name in sizes(TINY, "vae", "diffusers").keys() | sizes(TINY, "unet", "diffusers").keys():
        assert modern_name(name) == name
    for network, top in (
        ("text", "text_model."),
        ("image_encoder", "vision_model."),
    ):  # with and without the first part
        for name in sizes(SD15, network, "diffusers"):
            assert (
                modern_name(name, network) == modern_name(name.removeprefix(top), network) == name
            )
    assert modern_name("encoder.conv_in.weight", "vae") == "encoder.conv_in.weight"
