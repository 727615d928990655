"""What is trained, at which rate, and LoRA factors as a file that other code of ours reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from caphuman_jax.config import SD15
from caphuman_jax.errors import SettingError
from caphuman_jax.models import registry
from caphuman_jax.training import lora_layers, trainable
from caphuman_jax.weights import lora

NETWORKS = ("unet", "capface", "identity")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep=".")


@pytest.fixture(scope="module")
def sd15():
    return {name: params for name, (_, params) in registry.abstract(SD15, only=NETWORKS).items()}


def test_as_many_parameters_as_the_original(sd15):
    trained, frozen = trainable.split(sd15)
    assert registry.count(trained) == 362_464_049
    assert set(trained) == {"capface", "identity"} and frozen == {"unet": sd15["unet"]}


def test_parts_of_the_unet_with_their_own_rates(sd15):
    unfreeze = r"up\..*cross_attention=1e-5,^conv_out"
    trained, frozen = trainable.split(sd15, unfreeze)
    picked = flat(trained["unet"])
    assert all(
        "cross_attention" in path and path.startswith("up.") or path.startswith("conv_out")
        for path in picked
    )
    assert (
        sum("conv_out" in path for path in picked) == 2 and len(picked) == 2 + 9 * 5
    )  # nine blocks: query, key, value, out and its bias
    assert not picked.keys() & flat(frozen["unet"]).keys()
    assert flat(trainable.joined(trained, frozen)) == flat(sd15)
    rates = flat(trainable.rates(trained, 1e-4, unfreeze))
    assert rates["unet.conv_out.kernel"] == 1.0 == rates["capface.mask_out.kernel"]
    assert rates["unet.up.2.attention_0.cross_attention.key.kernel"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text, words",
    [
        ("up.9.res", "picks no parameter"),
        ("up[", "write EXPRESSION"),
        ("up=fast", "write EXPRESSION"),
    ],
)
def test_a_wrong_rule_is_told(sd15, text, words):
    with pytest.raises(SettingError, match=words):
        trainable.split(sd15, text)


def test_frozen_kernels_are_stored_as_they_are_used():
    tree = {
        "unet": {
            "norm": {"scale": np.ones(3, np.float32)},
            "a": {"kernel": np.full((2, 2), 1.001, np.float32), "bias": np.ones(2, np.float32)},
            "b": {"kernel": np.ones((2, 2), np.float32)},
        }
    }
    found = flat(trainable.stored(tree, jnp.bfloat16, keep=["unet.b.kernel"]))
    assert {name: str(leaf.dtype) for name, leaf in found.items()} == {
        "unet.norm.scale": "float32",
        "unet.a.kernel": "bfloat16",
        "unet.a.bias": "float32",
        "unet.b.kernel": "float32",
    }


@pytest.fixture(scope="module")
def unet(tiny):
    shapes = registry.abstract(tiny, only=("unet",))["unet"][1]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("expression", [lora_layers.TARGETS, r"(conv_1|proj_in|proj_out)\.kernel"])
def test_a_lora_file_adds_what_training_added(tiny, unet, expression, tmp_path):
    rng = np.random.default_rng(1)
    factors = lora_layers.start(unet, 3, expression, rng)
    assert all(not up.any() for path, up in flat(factors).items() if path.endswith("up"))
    np.testing.assert_array_equal(
        *(jax.tree.leaves(x)[0] for x in (lora_layers.added(unet, factors, 2.0), unet))
    )
    factors = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), factors)
    added = lora_layers.added(unet, factors, 6 / 3)
    lora_layers.save(tmp_path / "l.safetensors", tiny, factors, alpha=6.0)
    read = lora.read_file(tmp_path / "l.safetensors", tiny)
    assert set(read.parts) == {"unet"} and sorted(read.parts["unet"]) == sorted(
        lora_layers.targets(unet, expression)
    )
    applied = lora.apply({"unet": unet}, [(read, 1.0)])["unet"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), added, applied
    )
    assert [p.name for p in tmp_path.iterdir()] == ["l.safetensors"]


def test_lora_start_is_pytorchs(unet):
    factors = flat(lora_layers.start(unet, 4, lora_layers.TARGETS, np.random.default_rng(0)))
    down = np.concatenate(
        [x.ravel() * np.sqrt(x.shape[0]) for path, x in factors.items() if path.endswith("down")]
    )
    assert np.abs(down).max() <= 1 and down.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)


def test_targets_that_are_none_are_told(unet):
    with pytest.raises(SettingError, match="picks no kernel"):
        lora_layers.targets(unet, "nothing")
