import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import IdentityConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from caphuman_jax.models import registry

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
    identity=IdentityConfig(recognition_width=6, image_width=5),
    vae=VAEConfig(
        encoder_channels=8,
        decoder_channels=8,
        channel_multipliers=(1,),
        blocks_per_level=1,
        groups=4,
    ),
    text=TextConfig(vocabulary=50, width=12, layers=1, heads=2, mlp_width=16),
    image_encoder=None,
)


def test_init_and_abstract_agree():
    shapes, networks = registry.abstract(TINY), registry.init(TINY, jax.random.key(0))
    assert set(networks) == set(shapes) == {"unet", "capface", "identity", "vae", "text"}
    for name, (graphdef, params) in networks.items():
        assert graphdef == shapes[name][0]
        assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
            lambda x: (x.shape, x.dtype), shapes[name][1]
        )
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_params_are_nested_dicts_with_string_keys():
    def check(tree):
        if not isinstance(tree, dict):
            return
        assert all(type(key) is str for key in tree)
        for value in tree.values():
            check(value)

    check({name: params for name, (_, params) in registry.abstract(TINY).items()})


def test_same_key_same_parameters_and_no_two_layers_alike():
    first, second, other = (
        registry.init(TINY, jax.random.key(k), only=("capface",))["capface"][1] for k in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    kernel = first["encoder"]["middle"]["res_1"]["conv_1"]["kernel"]
    assert not np.array_equal(kernel, other["encoder"]["middle"]["res_1"]["conv_1"]["kernel"])
    assert not np.array_equal(kernel, first["encoder"]["middle"]["res_2"]["conv_1"]["kernel"])


def test_full_size_parameter_counts():
    counts = {
        name: registry.count(params)
        for name, (_, params) in registry.abstract(ModelConfig()).items()
    }
    assert counts == {
        "unet": 859_520_964,
        "capface": 361_282_865,
        "identity": 1_181_184,
        "vae": 83_653_863,
        "text": 123_060_480,
        "image_encoder": 303_179_776,
    }
