import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from caphuman_jax.config import SD15, CapFaceConfig, ModelConfig, UNetConfig
from caphuman_jax.models import registry
from caphuman_jax.models.unet import control_shapes

TINY = ModelConfig(
    unet=UNetConfig(
        channels=32,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=2,
        attention_resolutions=(1, 2),
        heads=4,
        cross_attention_dim=24,
        groups=8,
    ),
    controlnets=("openpose", "landmarks"),
    controlnet=CapFaceConfig(hint_channels=3, hint_widths=(8, 12, 16, 24)),
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def reference(randomized):
    from diffusers import ControlNetModel

    cfg = TINY.unet
    return randomized(
        ControlNetModel(
            block_out_channels=[cfg.channels * m for m in cfg.channel_multipliers],
            layers_per_block=cfg.blocks_per_level,
            down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            cross_attention_dim=cfg.cross_attention_dim,
            attention_head_dim=cfg.heads,
            norm_num_groups=cfg.groups,
            conditioning_embedding_out_channels=TINY.controlnet.hint_widths,
        )
    )


def run(graphdef, params, hints, *inputs):
    @jax.jit
    def control(params, hints, *inputs):
        controlnet = nnx.merge(graphdef, params)
        return controlnet(*inputs, controlnet.encode_hints(hints))

    return control(params, jnp.asarray(hints), *map(jnp.asarray, inputs))


def test_equals_diffusers(reference, filled):
    graphdef, params = filled("controlnet_openpose", TINY, reference.state_dict(), "diffusers")
    latents, t, text, hints = (
        normal(0, 2, 16, 8, 4),
        np.array([801, 37], np.float32),
        normal(1, 2, 7, 24),
        normal(2, 2, 128, 64, 3),
    )

    def to_torch(x):
        return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    with torch.no_grad():
        down, middle = reference(
            to_torch(latents),
            torch.from_numpy(t),
            torch.from_numpy(text),
            controlnet_cond=to_torch(hints),
            return_dict=False,
        )
    ours = run(graphdef, params, hints, latents, t, text)
    assert len(ours) == len(down) + 1
    for a, b in zip(ours, [*down, middle]):
        assert (
            np.abs(np.asarray(a).transpose(0, 3, 1, 2) - b.numpy()).max()
            < 1e-5 * np.abs(b.numpy()).max()
        )


def test_untrained_it_does_nothing():
    graphdef, params = registry.init(TINY, jax.random.key(0), only=("controlnet_landmarks",))[
        "controlnet_landmarks"
    ]
    control = run(
        graphdef,
        params,
        normal(2, 1, 64, 64, 3),
        normal(0, 1, 8, 8, 4),
        np.array([5.0], np.float32),
        normal(1, 1, 7, 24),
    )
    assert [x.shape[1:] for x in control] == control_shapes(TINY.unet, 8, 8)
    assert not any(np.asarray(x).any() for x in control)


def test_networks_are_named_by_the_configuration():
    assert [name for name in registry.abstract(TINY) if name.startswith("controlnet")] == [
        "controlnet_openpose",
        "controlnet_landmarks",
    ]
    assert not [name for name in registry.abstract(SD15) if name.startswith("controlnet")]


def test_full_size():
    """361,279,120 parameters, as many as in control_v11p_sd15_openpose.pth: CapFace's but for six
    more hint channels and the mask.
    """
    cfg = ModelConfig(controlnets=("openpose",))
    networks = registry.abstract(cfg, only=("controlnet_openpose", "capface"))
    count = registry.count(networks["controlnet_openpose"][1])
    assert (
        count == registry.count(networks["capface"][1]) - 6 * 9 * 16 - (9 * 320 + 1) == 361_279_120
    )
