"""PyTorch parameter names ↔ paths in our networks, one table a network.

Two forms of names: "ldm", those of the original latent diffusion code (caphuman.ckpt, Stable
Diffusion 1's .ckpt files, and their safetensors copies), and "diffusers", those of its
UNet2DConditionModel, AutoencoderKL and ControlNetModel. CLIP has transformers' names in both. All
are without the prefix that a file puts before a network (`prefix`)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from caphuman_jax.config import CapFaceConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig

FORMS = ("ldm", "diffusers")

PREFIXES = {
    "unet": "model.diffusion_model.",
    "capface": "control_model.",
    "controlnet": "control_model.",
    "identity": "",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
    "image_encoder": "control_cond_stage_model.transformer.",
}
"""What stands before each network's names in caphuman.ckpt, and before a ControlNet's in its file
(control_v11p_sd15_openpose.pth).
"""

Rows = list[tuple[str, str, str]]  # (LDM name, diffusers name, our path) of modules


def prefix(network: str, form: str = "ldm") -> str:
    """What stands before a network's names in a file: `PREFIXES`; nothing in "diffusers", where
    each network has a file of its own.
    """
    return PREFIXES[_kind(network)] if form == "ldm" else ""


def table(
    network: str, cfg: ModelConfig, paths: Iterable[str], form: str = "ldm"
) -> dict[str, str]:
    """{PyTorch name without prefix: dotted path} of one network ("unet", "capface",
    "controlnet_NAME", …).

    `paths`: the network's own parameter paths; a block that may have a part (a shortcut, say) has
    it only if it is among them. `form`: one of `FORMS`. A diffusers file has CapFace's mask under
    the name that it has in caphuman.ckpt."""
    column = FORMS.index(form)
    paths = set(paths)
    names = {}
    for row in modules(network, cfg):
        for torch_leaf, leaf in _LEAVES:
            path = f"{row[-1]}{leaf}"
            if path in paths:
                names[f"{row[column]}{torch_leaf}"] = path
    return names


def modules(network: str, cfg: ModelConfig) -> Rows:
    """(LDM name, diffusers name, our path) of every module that the network may have."""
    return {
        "unet": lambda: _unet(cfg.unet),
        "capface": lambda: [
            *_controlnet(cfg.unet, cfg.capface),
            ("mask_predict.0", "mask_predict.0", "mask_out"),
        ],
        "controlnet": lambda: _controlnet(cfg.unet, cfg.controlnet),
        "identity": lambda: _alike([("img_linear", "image"), ("id_linear", "recognition")]),
        "vae": lambda: _vae(cfg.vae),
        "text": lambda: _text(cfg.text),
        "image_encoder": lambda: _image_encoder(
            cfg.image_encoder.layers if cfg.image_encoder else 0
        ),
    }[_kind(network)]()


def modern_name(name: str, network: str = "") -> str:
    """A name as some files in the diffusers form have it → the one in `table`; any other name as it
    is.

    Early diffusers files name the parts of the VAE's attention query, key, value and proj_attn;
    some converters write diffusers' names of these parts into files of the original's names.
    With `network` "text" or "image_encoder": transformers 5 leaves out the `text_model.` or
    `vision_model.` that every CLIP name began with before."""
    if network in _CLIP_TOPS and name.split(".")[0] in (
        "embeddings",
        "encoder",
        "final_layer_norm",
        "pre_layrnorm",
        "post_layernorm",
    ):
        return _CLIP_TOPS[network] + name
    if network == "vae":
        found = re.fullmatch(r"(.*\.mid\.attn_1)\.(.+)\.(weight|bias)", name)
        if found:
            return f"{found[1]}.{_LDM_ATTENTION.get(found[2], found[2])}.{found[3]}"
    found = re.fullmatch(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{found[1]}.{_EARLY_ATTENTION[found[2]]}.{found[3]}" if found else name


_CLIP_TOPS = {"text": "text_model.", "image_encoder": "vision_model."}
_LDM_ATTENTION = {
    **{name: part for part in "qkv" for name in (f"to_{part}", f"{part}_proj")},
    **{"query": "q", "key": "k", "value": "v", "group_norm": "norm"},
    **dict.fromkeys(("to_out.0", "to_out", "proj_attn"), "proj_out"),
}
"""The VAE's attention in files of the original's names, as converters since 2023 write it."""
_EARLY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# A norm's weight is our scale, a dense layer's or convolution's our kernel, an embedding's our
# embedding; a parameter that we hold outside of any layer is named whole.
_LEAVES = [
    (".weight", ".scale"),
    (".weight", ".kernel"),
    (".weight", ".embedding"),
    (".bias", ".bias"),
    ("", ""),
]


def _kind(network: str) -> str:
    return "controlnet" if network.startswith("controlnet_") else network


def _unet(cfg: UNetConfig) -> Rows:
    rows = _under("", "", "encoder.", _encoder(cfg))
    number = 0
    for block, level in enumerate(reversed(range(len(cfg.channel_multipliers)))):
        attention = 2**level in cfg.attention_resolutions
        for i in range(cfg.blocks_per_level + 1):
            rows += _under(
                f"output_blocks.{number}.0.",
                f"up_blocks.{block}.resnets.{i}.",
                f"up.{level}.res_{i}.",
                _RES_BLOCK,
            )
            if attention:
                rows += _under(
                    f"output_blocks.{number}.1.",
                    f"up_blocks.{block}.attentions.{i}.",
                    f"up.{level}.attention_{i}.",
                    _TRANSFORMER_BLOCK,
                )
            number += 1
        if level > 0:
            place = 2 if attention else 1
            rows.append(
                (
                    f"output_blocks.{number - 1}.{place}.conv",
                    f"up_blocks.{block}.upsamplers.0.conv",
                    f"up.{level}.upsample",
                )
            )
    return [*rows, ("out.0", "conv_norm_out", "norm_out"), ("out.2", "conv_out", "conv_out")]


def _controlnet(unet: UNetConfig, cfg: CapFaceConfig) -> Rows:
    rows = _under("", "", "encoder.", _encoder(unet))
    last = 2 * len(cfg.hint_widths) - 1
    for i in range(last + 1):
        theirs = "conv_in" if i == 0 else "conv_out" if i == last else f"blocks.{i - 1}"
        rows.append(
            (f"input_hint_block.{2 * i}", f"controlnet_cond_embedding.{theirs}", f"hint.convs.{i}")
        )
    skips = len(unet.channel_multipliers) * (unet.blocks_per_level + 1)
    rows += [
        (f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}", f"zero.{i}") for i in range(skips)
    ]
    return [*rows, ("middle_block_out.0", "controlnet_mid_block", f"zero.{skips}")]


def _encoder(cfg: UNetConfig) -> Rows:
    rows = [
        ("time_embed.0", "time_embedding.linear_1", "time_1"),
        ("time_embed.2", "time_embedding.linear_2", "time_2"),
        ("input_blocks.0.0", "conv_in", "conv_in"),
    ]
    number = 1
    for level in range(len(cfg.channel_multipliers)):
        block, stage = f"down_blocks.{level}.", f"down.{level}."
        for i in range(cfg.blocks_per_level):
            rows += _under(
                f"input_blocks.{number}.0.", f"{block}resnets.{i}.", f"{stage}res_{i}.", _RES_BLOCK
            )
            if 2**level in cfg.attention_resolutions:
                rows += _under(
                    f"input_blocks.{number}.1.",
                    f"{block}attentions.{i}.",
                    f"{stage}attention_{i}.",
                    _TRANSFORMER_BLOCK,
                )
            number += 1
        if level < len(cfg.channel_multipliers) - 1:
            rows.append(
                (f"input_blocks.{number}.0.op", f"{block}downsamplers.0.conv", f"{stage}downsample")
            )
            number += 1
    rows += _under("middle_block.0.", "mid_block.resnets.0.", "middle.res_1.", _RES_BLOCK)
    rows += _under(
        "middle_block.1.", "mid_block.attentions.0.", "middle.attention.", _TRANSFORMER_BLOCK
    )
    return rows + _under("middle_block.2.", "mid_block.resnets.1.", "middle.res_2.", _RES_BLOCK)


def _vae(cfg: VAEConfig) -> Rows:
    rows = _alike([("quant_conv", "quant"), ("post_quant_conv", "post_quant")])
    levels = len(cfg.channel_multipliers)
    for half, direction, sampler, blocks in (
        ("encoder", "down", "downsample", cfg.blocks_per_level),
        ("decoder", "up", "upsample", cfg.blocks_per_level + 1),
    ):
        inner = [
            ("conv_in", "conv_in", "conv_in"),
            ("norm_out", "conv_norm_out", "norm_out"),
            ("conv_out", "conv_out", "conv_out"),
        ]
        inner += _under("mid.block_1.", "mid_block.resnets.0.", "middle.res_1.", _VAE_BLOCK)
        inner += _under("mid.attn_1.", "mid_block.attentions.0.", "middle.", _VAE_ATTENTION)
        inner += _under("mid.block_2.", "mid_block.resnets.1.", "middle.res_2.", _VAE_BLOCK)
        for level in range(levels):
            # The original numbers the decoder's levels by resolution; diffusers' and ours are in
            # the order in which they run.
            number = level if half == "encoder" else levels - 1 - level
            original, block, stage = (
                f"{direction}.{number}.",
                f"{direction}_blocks.{level}.",
                f"{direction}.{level}.",
            )
            for i in range(blocks):
                inner += _under(
                    f"{original}block.{i}.", f"{block}resnets.{i}.", f"{stage}res_{i}.", _VAE_BLOCK
                )
            inner.append(
                (f"{original}{sampler}.conv", f"{block}{sampler}rs.0.conv", f"{stage}{sampler}")
            )
        rows += _under(f"{half}.", f"{half}.", f"{half}.", inner)
    return rows


def _text(cfg: TextConfig) -> Rows:
    pairs = [
        ("embeddings.token_embedding", "tokens"),
        ("embeddings.position_embedding.weight", "positions"),
        ("final_layer_norm", "norm_out"),
        ("embeddings.token_projection", "widen"),
    ]
    return _under("text_model.", "text_model.", "", _alike(pairs) + _clip_layers(cfg.layers))


def _image_encoder(layers: int) -> Rows:
    pairs = [
        ("embeddings.class_embedding", "class_token"),
        ("embeddings.patch_embedding", "patches"),
        ("embeddings.position_embedding.weight", "positions"),
        ("pre_layrnorm", "norm_in"),
        ("post_layernorm", "norm_out"),
    ]
    return _under("vision_model.", "vision_model.", "", _alike(pairs) + _clip_layers(layers))


def _clip_layers(layers: int) -> Rows:
    return [
        row
        for i in range(layers)
        for row in _under(
            f"encoder.layers.{i}.", f"encoder.layers.{i}.", f"transformer.layers.{i}.", _CLIP_LAYER
        )
    ]


def _alike(pairs: list[tuple[str, str]]) -> Rows:
    """(name in both forms, our path) → rows."""
    return [(name, name, path) for name, path in pairs]


def _under(ldm: str, diffusers: str, path: str, rows: Rows) -> Rows:
    """Rows with something put before each column."""
    return [(ldm + row[0], diffusers + row[1], path + row[2]) for row in rows]


_RES_BLOCK = [
    ("in_layers.0", "norm1", "norm_1"),
    ("in_layers.2", "conv1", "conv_1"),
    ("emb_layers.1", "time_emb_proj", "time"),
    ("out_layers.0", "norm2", "norm_2"),
    ("out_layers.3", "conv2", "conv_2"),
    ("skip_connection", "conv_shortcut", "shortcut"),
]
_TRANSFORMER_BLOCK = _alike(
    [("norm", "norm"), ("proj_in", "proj_in"), ("proj_out", "proj_out")]
) + _under(
    "transformer_blocks.0.",
    "transformer_blocks.0.",
    "",
    _alike(
        [
            ("norm1", "norm_1"),
            ("norm2", "norm_2"),
            ("norm3", "norm_3"),
            ("ff.net.0.proj", "feed_forward.up"),
            ("ff.net.2", "feed_forward.down"),
        ]
        + [
            (f"{theirs}.{part}", f"{ours}.{name}")
            for theirs, ours in (("attn1", "self_attention"), ("attn2", "cross_attention"))
            for part, name in (
                ("to_q", "query"),
                ("to_k", "key"),
                ("to_v", "value"),
                ("to_out.0", "out"),
            )
        ]
    ),
)
_VAE_BLOCK = [
    ("norm1", "norm1", "norm_1"),
    ("conv1", "conv1", "conv_1"),
    ("norm2", "norm2", "norm_2"),
    ("conv2", "conv2", "conv_2"),
    ("nin_shortcut", "conv_shortcut", "shortcut"),
]
_VAE_ATTENTION = [
    ("norm", "group_norm", "norm"),
    ("q", "to_q", "query"),
    ("k", "to_k", "key"),
    ("v", "to_v", "value"),
    ("proj_out", "to_out.0", "out"),
]
_CLIP_LAYER = _alike(
    [
        ("layer_norm1", "norm_1"),
        ("self_attn.q_proj", "query"),
        ("self_attn.k_proj", "key"),
        ("self_attn.v_proj", "value"),
        ("self_attn.out_proj", "out"),
        ("layer_norm2", "norm_2"),
        ("mlp.fc1", "up"),
        ("mlp.fc2", "down"),
    ]
)
