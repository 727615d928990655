import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from caphuman_jax.config import ModelConfig, UNetConfig
from caphuman_jax.models import registry
from caphuman_jax.models.unet import control_shapes, skip_widths
from caphuman_jax.nn.compute_config import ComputeConfig

TINY = ModelConfig(
    unet=UNetConfig(
        channels=32,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=2,
        attention_resolutions=(1, 2),
        heads=4,
        cross_attention_dim=24,
        groups=8,
    )
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny():
    return registry.init(TINY, jax.random.key(0), only=("unet",))["unet"]


@pytest.fixture(scope="module")
def diffusers_unet():
    from diffusers import UNet2DConditionModel

    cfg = TINY.unet
    return UNet2DConditionModel(
        block_out_channels=[cfg.channels * m for m in cfg.channel_multipliers],
        layers_per_block=cfg.blocks_per_level,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=cfg.cross_attention_dim,
        attention_head_dim=cfg.heads,
        norm_num_groups=cfg.groups,
    )


@pytest.mark.parametrize("with_control", [False, True])
def test_equals_diffusers(diffusers_unet, randomized, filled, with_control):
    module = randomized(diffusers_unet)
    graphdef, params = filled("unet", TINY, module.state_dict(), "diffusers")
    latents, text, t = normal(0, 2, 16, 8, 4), normal(1, 2, 7, 24), np.array([801, 37], np.float32)
    control = (
        [normal(i, 2, *shape) for i, shape in enumerate(control_shapes(TINY.unet, 16, 8))]
        if with_control
        else None
    )

    def to_torch(x):
        return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    residuals = [to_torch(x) for x in control] if with_control else None
    with torch.no_grad():
        expected = module(
            to_torch(latents),
            torch.from_numpy(t),
            torch.from_numpy(text),
            down_block_additional_residuals=residuals and residuals[:-1],
            mid_block_additional_residual=residuals and residuals[-1],
        ).sample.numpy()
    ours = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))(
        params,
        jnp.asarray(latents),
        jnp.asarray(t),
        jnp.asarray(text),
        control and tuple(map(jnp.asarray, control)),
    )
    assert (
        np.abs(np.asarray(ours).transpose(0, 3, 1, 2) - expected).max()
        < 1e-5 * np.abs(expected).max()
    )


def test_control_fits_the_skips(tiny):
    assert len(control_shapes(UNetConfig(), 64, 64)) == 13
    assert control_shapes(UNetConfig(), 64, 48)[-1] == (8, 6, 1280)
    graphdef, params = tiny
    skips, middle = jax.eval_shape(
        lambda params, *inputs: nnx.merge(graphdef, params).encoder(*inputs),
        params,
        jnp.zeros((1, 16, 8, 4)),
        jnp.zeros((1,)),
        jnp.zeros((1, 7, 24)),
    )
    assert [x.shape[1:] for x in [*skips, middle]] == control_shapes(TINY.unet, 16, 8)
    assert [x.shape[3] for x in skips] == skip_widths(TINY.unet)


def test_wrong_number_of_residuals_is_refused(tiny):
    graphdef, params = tiny
    with pytest.raises(ValueError, match="1 control residuals; this UNet takes 10"):
        jax.eval_shape(
            lambda params, x: nnx.merge(graphdef, params)(
                x, jnp.zeros((1,)), jnp.zeros((1, 7, 24)), (x,)
            ),
            params,
            jnp.zeros((1, 16, 8, 4)),
        )


def test_bfloat16_is_near_float32(randomized, filled, diffusers_unet):
    graphdef, params = filled("unet", TINY, randomized(diffusers_unet).state_dict(), "diffusers")
    half, _ = registry.abstract(TINY, ComputeConfig(jnp.bfloat16), only=("unet",))["unet"]
    inputs = [
        jnp.asarray(x)
        for x in (normal(0, 1, 8, 8, 4), np.array([801], np.float32), normal(1, 1, 7, 24))
    ]
    a, b = (
        jax.jit(lambda params, g=g: nnx.merge(g, params)(*inputs))(params) for g in (graphdef, half)
    )
    assert b.dtype == jnp.float32
    assert 0 < float(jnp.abs(a - b).max() / jnp.abs(a).max()) < 0.05
