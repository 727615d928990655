"""DECA's encoder: what its numbers are, and its weights; the numbers are checked in
tests/parity/test_face_networks.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import deca_encoder, registry
from caphuman_jax.nn.initializers import HostRngs
from caphuman_jax.weights import face_names


def test_order_of_the_numbers():
    parts = deca_encoder.split_code(jnp.arange(2 * 236, dtype=jnp.float32).reshape(2, 236))
    first = {name: int(part[0].reshape(-1)[0]) for name, part in parts.items()}
    assert first == {
        "shape": 0,
        "texture": 100,
        "expression": 150,
        "pose": 200,
        "camera": 206,
        "light": 209,
    }
    assert parts["light"].shape == (2, 9, 3)
    np.testing.assert_array_equal(
        parts["light"][0, 1], [212, 213, 214]
    )  # Nine bands of red, green and blue.


@pytest.fixture(scope="module")
def arrays():
    graphdef, params = registry.split(deca_encoder.DecaEncoder(rngs=HostRngs(jax.random.key(0))))
    flat = {
        ".".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    names = face_names.table("deca_encoder", flat)
    theirs = lambda array: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return params, {name: theirs(flat[path]) for name, path in names.items()}


def test_checkpoint_forms(arrays):
    """The whole checkpoint with E_flame in it, its names in one level, and E_flame alone."""
    params, flame = arrays
    detail = {"layers.0.weight": np.zeros((1, 1))}
    for given in (
        flame,
        {"E_flame": flame, "E_detail": detail},
        {f"E_flame.{k}": v for k, v in flame.items()} | {"E_detail.x": detail},
    ):
        _, loaded = face_names.load("deca_encoder", given)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_wrong_weights_are_named(arrays):
    with pytest.raises(ModelFolderError, match=r"layers\.2\.weight has shape \(159, 1024\)"):
        face_names.load(
            "deca_encoder", arrays[1] | {"layers.2.weight": np.zeros((159, 1024), np.float32)}
        )
    with pytest.raises(ModelFolderError, match="missing encoder.bn1.bias"):
        face_names.load("deca_encoder", {"E_flame": {}})


def test_number_of_parameters(arrays):
    """ResNet-50 without its classifier has 23,508,032 weights."""
    weights = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays[0])
        if path[-1].key not in ("mean", "variance")
    )
    assert weights == 23_508_032 + 2048 * 1024 + 1024 + 1024 * 236 + 236


def test_codes_of_crops(arrays):
    graphdef, params = face_names.load("deca_encoder", arrays[1])
    parts = jax.eval_shape(
        lambda p: deca_encoder.encode(graphdef, p, jnp.zeros((3, 224, 224, 3))), params
    )
    assert {name: part.shape for name, part in parts.items()} == {
        "shape": (3, 100),
        "texture": (3, 50),
        "expression": (3, 50),
        "pose": (3, 6),
        "camera": (3, 3),
        "light": (3, 9, 3),
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_from_a_torch_file(arrays, tmp_path, zipped):
    """deca_model.tar as torch saves it, the other networks in it too."""
    import torch

    from caphuman_jax.weights.checkpoint_files import open_checkpoint

    params, flame = arrays
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in flame.items()}
    tensors["encoder.bn1.num_batches_tracked"] = torch.tensor(3)
    torch.save(
        {"E_flame": tensors, "E_detail": {"layers.0.weight": torch.zeros(2, 2)}},
        tmp_path / "deca_model.tar",
        _use_new_zipfile_serialization=zipped,
    )
    with open_checkpoint(tmp_path / "deca_model.tar") as checkpoint:
        _, loaded = face_names.load("deca_encoder", checkpoint)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
