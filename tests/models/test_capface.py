import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from caphuman_jax.config import SD15, CapFaceConfig, IdentityConfig, ModelConfig, UNetConfig
from caphuman_jax.models import registry
from caphuman_jax.models.capface import gate, scale_control, start_from_unet, sum_controls
from caphuman_jax.models.identity_projector import drop_identity
from caphuman_jax.models.unet import control_shapes

TINY = ModelConfig(
    unet=UNetConfig(
        channels=16,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(2,),
        heads=2,
        cross_attention_dim=12,
        groups=8,
    ),
    capface=CapFaceConfig(hint_widths=(4, 8, 12)),
    identity=IdentityConfig(recognition_width=6, image_width=5),
)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def networks():
    return registry.init(TINY, jax.random.key(0), only=("unet", "capface", "identity"))


def run_capface(networks, params):
    graphdef, _ = networks["capface"]

    @jax.jit
    def run(params):
        capface = nnx.merge(graphdef, params)
        features = capface.encode_hints(normal(2, 32, 16, 9))
        return capface(
            normal(2, 8, 4, 4), jnp.asarray([801.0, 37.0]), normal(2, 3, 12), features
        ), capface.mask(features)

    return run(params)


def test_trainable_parameters_at_full_size():
    networks = registry.abstract(SD15, only=registry.TRAINABLE).values()
    assert sum(registry.count(params) for _, params in networks) == 362_464_049


def test_untrained_control_is_zero_and_leaves_the_unet_unchanged(networks):
    control, mask = run_capface(networks, networks["capface"][1])
    assert [x.shape[1:] for x in control] == control_shapes(TINY.unet, 8, 4)
    assert all(not np.asarray(x).any() for x in control)
    assert mask.shape == (2, 8, 4, 1)
    graphdef, params = networks["unet"]
    # The UNet's own last convolution starts at zero too: give it something to lose.
    params = {**params, "conv_out": {"kernel": normal(3, 3, 16, 4), "bias": normal(4)}}
    inputs = normal(2, 8, 4, 4), jnp.asarray([801.0, 37.0]), normal(2, 7, 12)
    unet = jax.jit(lambda control: nnx.merge(graphdef, params)(*inputs, control))
    np.testing.assert_array_equal(unet(control), unet(None))


def test_trained_control_depends_on_hints_and_identity(networks):
    graphdef, params = networks["capface"]
    params = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), params)

    @jax.jit
    def run(hints, identity):
        capface = nnx.merge(graphdef, params)
        return capface(
            normal(1, 8, 4, 4), jnp.asarray([500.0]), identity, capface.encode_hints(hints)
        )

    hints, identity = normal(1, 32, 16, 9), normal(1, 3, 12)
    base = run(hints, identity)
    assert not np.allclose(base[0], run(2 * hints, identity)[0], atol=1e-3)
    assert not np.allclose(base[-1], run(hints, 2 * identity)[-1], atol=1e-3)


def test_gate_resizes_as_pytorch_and_thresholds():
    mask = jax.nn.sigmoid(3 * normal(2, 8, 12, 1))
    control = (normal(2, 8, 12, 3), normal(2, 4, 6, 5), normal(2, 2, 3, 5))
    for hard in (True, False):
        for ours, x in zip(gate(control, mask, hard=hard), control):
            resized = (
                torch.nn.functional.interpolate(
                    torch.from_numpy(np.asarray(mask).transpose(0, 3, 1, 2).copy()),
                    size=x.shape[1:3],
                    mode="bilinear",
                )
                .numpy()
                .transpose(0, 2, 3, 1)
            )
            np.testing.assert_allclose(
                ours, np.asarray(x) * ((resized > 0.5) if hard else resized), atol=1e-6
            )


@pytest.mark.parametrize("hard", [True, False])
def test_no_gradient_through_the_gate(hard):
    control = (normal(1, 4, 4, 2),)
    gradient = jax.grad(lambda mask: gate(control, mask, hard)[0].sum())(
        jnp.full((1, 4, 4, 1), 0.7)
    )
    assert not np.asarray(gradient).any()


def test_scale_and_sum():
    a, b = (
        (jnp.ones((1, 2, 2, 1)), jnp.full((1, 1, 1, 3), 2.0)),
        (jnp.full((1, 2, 2, 1), 3.0), jnp.zeros((1, 1, 1, 3))),
    )
    first, second = sum_controls([scale_control(a, 0.5), scale_control(b, [2.0, 1.0])])
    np.testing.assert_array_equal(first, np.full((1, 2, 2, 1), 6.5))
    np.testing.assert_array_equal(second, np.full((1, 1, 1, 3), 1.0))
    with pytest.raises(ValueError):
        scale_control(a, [1.0])


def test_start_from_unet_copies_the_encoder(networks):
    params = start_from_unet(networks["capface"][1], networks["unet"][1])
    assert jax.tree.structure(params) == jax.tree.structure(networks["capface"][1])
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], networks["unet"][1]["encoder"])


def test_identity_tokens_in_order(networks):
    graphdef, params = networks["identity"]
    image, recognition = normal(2, 4, 5), normal(2, 6)
    tokens = nnx.merge(graphdef, params)(image, recognition)
    assert tokens.shape == (2, 5, 12)
    np.testing.assert_allclose(
        tokens[:, :4],
        image @ params["image"]["kernel"] + params["image"]["bias"][None, None],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        tokens[:, 4], recognition @ params["recognition"]["kernel"], atol=1e-5
    )


def test_identity_dropout_in_time():
    tokens, timesteps = jnp.ones((4, 2, 3)), jnp.asarray([0.0, 499.0, 500.0, 501.0])
    np.testing.assert_array_equal(drop_identity(tokens, timesteps, 500.0)[:, 0, 0], [1, 1, 1, 0])
    np.testing.assert_array_equal(drop_identity(tokens, timesteps, 0.0), tokens)
    np.testing.assert_array_equal(jax.jit(drop_identity)(tokens, timesteps, 0.0), tokens)
