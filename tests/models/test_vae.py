import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from caphuman_jax.config import ModelConfig, VAEConfig
from caphuman_jax.models import registry

TINY = ModelConfig(
    vae=VAEConfig(
        encoder_channels=16,
        decoder_channels=16,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=1,
        groups=8,
    )
)
PATCHED = VAEConfig(
    patch=2,
    encoder_channels=16,
    decoder_channels=24,
    channel_multipliers=(1, 2, 4),
    blocks_per_level=1,
    latent_channels=8,
    groups=8,
)


def test_equals_diffusers(randomized, filled):
    from diffusers import AutoencoderKL

    module = randomized(
        AutoencoderKL(
            block_out_channels=[16, 32, 32],
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
        )
    )
    graphdef, params = filled("vae", TINY, module.state_dict(), "diffusers")
    rng = np.random.default_rng(0)
    images, latents = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 16, 24), (2, 4, 4, 6))
    )
    with torch.no_grad():
        posterior = module.encode(torch.from_numpy(images)).latent_dist
        pictures = module.decode(torch.from_numpy(latents)).sample.numpy()

    @jax.jit
    def run(params, images, latents):
        vae = nnx.merge(graphdef, params)
        return *vae.encode(images), vae.decode(latents)

    ours = run(params, *(jnp.asarray(x.transpose(0, 2, 3, 1)) for x in (images, latents)))
    for a, b in zip(ours, (posterior.mean.numpy(), posterior.logvar.numpy(), pictures)):
        assert np.abs(np.asarray(a).transpose(0, 3, 1, 2) - b).max() < 1e-5 * np.abs(b).max()


def test_patches_make_the_rest_of_the_downsampling():
    cfg = ModelConfig(vae=PATCHED)
    assert PATCHED.downsampling == 8
    graphdef, params = registry.abstract(cfg, only=("vae",))["vae"]
    assert params["encoder"]["conv_in"]["kernel"].shape == (3, 3, 12, 16)
    assert params["decoder"]["conv_out"]["kernel"].shape == (3, 3, 24, 12)
    mean, logvar = jax.eval_shape(
        lambda p, x: nnx.merge(graphdef, p).encode(x), params, jnp.zeros((2, 32, 48, 3))
    )
    assert mean.shape == logvar.shape == (2, 4, 6, 8)
    picture = jax.eval_shape(lambda p, x: nnx.merge(graphdef, p).decode(x), params, mean)
    assert picture.shape == (2, 32, 48, 3)


def test_full_size():
    assert registry.count(registry.abstract(ModelConfig(), only=("vae",))["vae"][1]) == 83_653_863
