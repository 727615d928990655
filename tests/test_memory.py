"""How weights lie in memory: converted on the host or on the device, the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.pipeline import loading
from caphuman_jax.weights import model_folder, placement

RNG = np.random.default_rng(0)
STORED = {
    "conv_in": {
        "kernel": RNG.standard_normal((3, 3, 4, 8)).astype(np.float16),
        "bias": RNG.standard_normal(8).astype(np.float32),
    },
    "norm": {
        "scale": RNG.standard_normal(8).astype(np.float16),
        "bias": RNG.standard_normal(8).astype(np.float16),
    },
    "query": {"kernel": (RNG.standard_normal((8, 8)) * 1e-6).astype(np.float16)},
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("setting", ["full", "normal", "low"])
@pytest.mark.parametrize("network", ["unet", "image_encoder", "facenet"])
def test_what_the_device_converts_is_what_the_host_would(network, setting, dtype):
    whole = jax.tree.map(lambda x: x.astype(np.float32), STORED)
    expected = placement.put(
        network, placement.packed(network, whole, jnp.dtype(dtype), setting), setting
    )
    found = placement.put_stored(network, STORED, jnp.dtype(dtype), setting)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert mine.dtype == theirs.dtype and isinstance(mine, jax.Array) == isinstance(
            theirs, jax.Array
        )
        np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))


def test_a_pipeline_is_loaded_by_an_accelerator_as_by_the_host(monkeypatch):
    host = loading.load("mini", dtype="bfloat16", cache=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    device = loading.load("mini", dtype="bfloat16", cache=False)
    assert (
        jax.tree.structure(device.params) == jax.tree.structure(host.params) and device.batch == 8
    )
    for mine, theirs in zip(jax.tree.leaves(device.params), jax.tree.leaves(host.params)):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))


@pytest.mark.parametrize("place", [-1, 20])
def test_an_accelerator_does_not_load_what_is_damaged(monkeypatch, tmp_path, place):
    """Neither a number that was changed nor a description: both are told alike."""
    whole = model_folder.find_model("mini")
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((tmp_path / "identity.safetensors").read_bytes())
    damaged[place] ^= 1
    (tmp_path / "identity.safetensors").write_bytes(damaged)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ModelFolderError, match="identity.safetensors is damaged"):
        loading.load(tmp_path, cache=False)
