"""PyTorch parameter names ↔ paths in our networks, one table a network.

PyTorch names are those of the original latent diffusion code (as in caphuman.ckpt and Stable Diffusion 1's .ckpt files)
and, for CLIP, those of transformers; without the prefix that a checkpoint puts before each network (`PREFIXES`).
"""

from __future__ import annotations

from collections.abc import Iterable

from caphuman_jax.config import ModelConfig, TextConfig, UNetConfig, VAEConfig

PREFIXES = {
    "unet": "model.diffusion_model.",
    "capface": "control_model.",
    "identity": "",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
    "image_encoder": "control_cond_stage_model.transformer.",
}
"""What stands before each network's names in caphuman.ckpt."""

Pairs = list[tuple[str, str]]  # (PyTorch name, our path) of modules


def table(network: str, cfg: ModelConfig, paths: Iterable[str]) -> dict[str, str]:
    """{PyTorch name without prefix: dotted path} of one network ("unet", "capface", …).

    `paths`: the network's own parameter paths; a block that may have a part (a shortcut, say) has it only if it is among them.
    """
    modules = {
        "unet": lambda: _unet(cfg.unet),
        "capface": lambda: _capface(cfg.unet, len(cfg.capface.hint_widths)),
        "identity": lambda: [("img_linear", "image"), ("id_linear", "recognition")],
        "vae": lambda: _vae(cfg.vae),
        "text": lambda: _text(cfg.text),
        "image_encoder": lambda: _image_encoder(cfg.image_encoder.layers),
    }[network]()
    paths = set(paths)
    names = {}
    for torch_module, module in modules:
        for torch_leaf, leaf in _LEAVES:
            path = f"{module}{leaf}"
            if path in paths:
                names[f"{torch_module}{torch_leaf}"] = path
    return names


# A norm's weight is our scale, a dense layer's or convolution's our kernel, an embedding's our embedding; a parameter that we
# hold outside of any layer is named whole.
_LEAVES = [(".weight", ".scale"), (".weight", ".kernel"), (".weight", ".embedding"), (".bias", ".bias"), ("", "")]


def _unet(cfg: UNetConfig) -> Pairs:
    pairs = _prefixed("", "encoder.", _encoder(cfg))
    number = 0
    for level in reversed(range(len(cfg.multipliers))):
        attention = 2**level in cfg.attention_downsamplings
        for i in range(cfg.res_blocks + 1):
            pairs += _prefixed(f"output_blocks.{number}.0.", f"up.{level}.res_{i}.", _RES_BLOCK)
            if attention:
                pairs += _prefixed(f"output_blocks.{number}.1.", f"up.{level}.attention_{i}.", _TRANSFORMER_BLOCK)
            number += 1
        if level > 0:
            pairs.append((f"output_blocks.{number - 1}.{2 if attention else 1}.conv", f"up.{level}.upsample"))
    return [*pairs, ("out.0", "norm_out"), ("out.2", "conv_out")]


def _capface(cfg: UNetConfig, hint_widths: int) -> Pairs:
    pairs = _prefixed("", "encoder.", _encoder(cfg))
    pairs += [(f"input_hint_block.{2 * i}", f"hint.convs.{i}") for i in range(2 * hint_widths)]
    skips = len(cfg.multipliers) * (cfg.res_blocks + 1)
    pairs += [(f"zero_convs.{i}.0", f"zero.{i}") for i in range(skips)]
    return [*pairs, ("middle_block_out.0", f"zero.{skips}"), ("mask_predict.0", "mask_out")]


def _encoder(cfg: UNetConfig) -> Pairs:
    pairs = [("time_embed.0", "time_1"), ("time_embed.2", "time_2"), ("input_blocks.0.0", "conv_in")]
    number = 1
    for level in range(len(cfg.multipliers)):
        for i in range(cfg.res_blocks):
            pairs += _prefixed(f"input_blocks.{number}.0.", f"down.{level}.res_{i}.", _RES_BLOCK)
            if 2**level in cfg.attention_downsamplings:
                pairs += _prefixed(f"input_blocks.{number}.1.", f"down.{level}.attention_{i}.", _TRANSFORMER_BLOCK)
            number += 1
        if level < len(cfg.multipliers) - 1:
            pairs.append((f"input_blocks.{number}.0.op", f"down.{level}.downsample"))
            number += 1
    pairs += _prefixed("middle_block.0.", "middle.res_1.", _RES_BLOCK)
    pairs += _prefixed("middle_block.1.", "middle.attention.", _TRANSFORMER_BLOCK)
    return pairs + _prefixed("middle_block.2.", "middle.res_2.", _RES_BLOCK)


def _vae(cfg: VAEConfig) -> Pairs:
    pairs = [("quant_conv", "quant"), ("post_quant_conv", "post_quant")]
    levels = len(cfg.multipliers)
    for half, direction, sampler, blocks in (
        ("encoder", "down", "downsample", cfg.res_blocks), ("decoder", "up", "upsample", cfg.res_blocks + 1)
    ):
        inner = [("conv_in", "conv_in"), ("norm_out", "norm_out"), ("conv_out", "conv_out")]
        inner += _prefixed("mid.block_1.", "middle.res_1.", _VAE_BLOCK)
        inner += _prefixed("mid.attn_1.", "middle.", _VAE_ATTENTION)
        inner += _prefixed("mid.block_2.", "middle.res_2.", _VAE_BLOCK)
        for level in range(levels):
            # The original numbers the decoder's levels by resolution; ours are in the order in which they run.
            number = level if half == "encoder" else levels - 1 - level
            for i in range(blocks):
                inner += _prefixed(f"{direction}.{number}.block.{i}.", f"{direction}.{level}.res_{i}.", _VAE_BLOCK)
            inner.append((f"{direction}.{number}.{sampler}.conv", f"{direction}.{level}.{sampler}"))
        pairs += _prefixed(f"{half}.", f"{half}.", inner)
    return pairs


def _text(cfg: TextConfig) -> Pairs:
    pairs = [
        ("embeddings.token_embedding", "tokens"), ("embeddings.position_embedding.weight", "positions"),
        ("final_layer_norm", "norm_out"), ("embeddings.token_projection", "widen"),
    ]
    return _prefixed("text_model.", "", pairs + _clip_layers(cfg.layers))


def _image_encoder(layers: int) -> Pairs:
    pairs = [
        ("embeddings.class_embedding", "class_token"), ("embeddings.patch_embedding", "patches"),
        ("embeddings.position_embedding.weight", "positions"), ("pre_layrnorm", "norm_in"), ("post_layernorm", "norm_out"),
    ]
    return _prefixed("vision_model.", "", pairs + _clip_layers(layers))


def _clip_layers(layers: int) -> Pairs:
    return [
        pair for i in range(layers) for pair in _prefixed(f"encoder.layers.{i}.", f"transformer.layers.{i}.", _CLIP_LAYER)
    ]


def _prefixed(torch_prefix: str, prefix: str, pairs: Pairs) -> Pairs:
    return [(torch_prefix + torch_name, prefix + name) for torch_name, name in pairs]


_RES_BLOCK = [
    ("in_layers.0", "norm_1"), ("in_layers.2", "conv_1"), ("emb_layers.1", "time"),
    ("out_layers.0", "norm_2"), ("out_layers.3", "conv_2"), ("skip_connection", "shortcut"),
]
_TRANSFORMER_BLOCK = [("norm", "norm"), ("proj_in", "proj_in"), ("proj_out", "proj_out")] + _prefixed(
    "transformer_blocks.0.", "",
    [
        ("norm1", "norm_1"), ("norm2", "norm_2"), ("norm3", "norm_3"),
        ("ff.net.0.proj", "feed_forward.up"), ("ff.net.2", "feed_forward.down"),
    ]
    + [
        (f"{theirs}.{part}", f"{ours}.{name}")
        for theirs, ours in (("attn1", "self_attention"), ("attn2", "cross_attention"))
        for part, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out"))
    ],
)
_VAE_BLOCK = [
    ("norm1", "norm_1"), ("conv1", "conv_1"), ("norm2", "norm_2"), ("conv2", "conv_2"), ("nin_shortcut", "shortcut"),
]
_VAE_ATTENTION = [("norm", "norm"), ("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out")]
_CLIP_LAYER = [
    ("layer_norm1", "norm_1"), ("self_attn.q_proj", "query"), ("self_attn.k_proj", "key"), ("self_attn.v_proj", "value"),
    ("self_attn.out_proj", "out"), ("layer_norm2", "norm_2"), ("mlp.fc1", "up"), ("mlp.fc2", "down"),
]
