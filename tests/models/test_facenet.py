"""FaceNet with random weights under the true names; its numbers are checked in
tests/parity/test_face_networks.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import facenet, registry
from caphuman_jax.models.network import abstract_network
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import HostRngs
from caphuman_jax.weights import face_names


@pytest.fixture(scope="module")
def arrays():
    """As in 20180402-114759-vggface2.pt: the network's, its classifier and the batch counters."""
    rng = np.random.default_rng(0)
    _, shapes = abstract_network(lambda rngs: facenet.FaceNet(rngs=rngs))
    made = {}
    for path, shape in _flat(shapes).items():
        made[path] = rng.standard_normal(shape).astype(np.float32) * 0.05 + (
            1 if path.endswith(("scale", "variance")) else 0
        )
    names = face_names.table("facenet", made)
    pytorch = {name: _theirs(made[path]) for name, path in names.items()}
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.int64(1)
        for name in names
        if name.endswith("running_mean")
    }
    classifier = {
        "logits.weight": np.zeros((8631, 512), np.float32),
        "logits.bias": np.zeros(8631, np.float32),
    }
    return pytorch | counters | classifier


def _flat(tree):
    return {
        ".".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _theirs(array):
    """Our layout → PyTorch's."""
    return (
        array.transpose(3, 2, 0, 1)
        if array.ndim == 4
        else array.T[:, :, None, None]
        if _is_pointwise(array)
        else array.T
    )


def _is_pointwise(array):
    return (
        array.ndim == 2 and array.shape[1] != facenet.WIDTH
    )  # The embedding is a dense layer there too.


def test_unit_vectors_of_crops(arrays):
    graphdef, params = face_names.load("facenet", arrays)
    crops = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    vectors = np.asarray(facenet.embed(graphdef, params, crops))
    assert vectors.shape == (2, 512) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])


def test_bfloat16_is_near(arrays):
    crops = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    exact, short = (
        np.asarray(facenet.embed(*face_names.load("facenet", arrays, dtype), crops))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert short.dtype == np.float32
    assert (exact * short).sum(axis=-1).min() > 0.99


def test_normalization():
    crops = np.asarray([[[[0, 127, 255]]]], np.uint8)
    np.testing.assert_allclose(
        facenet.normalize(crops)[0, 0, 0], np.asarray([-127.5, -0.5, 127.5]) / 128
    )


def test_parameters_and_compute_dtype():
    """The published backbone has 23,482,624 weights besides its running statistics."""
    graphdef, params = registry.split(
        facenet.FaceNet(ComputeConfig(jnp.bfloat16), rngs=HostRngs(jax.random.key(0)))
    )
    assert registry.count(params) == 23_482_624 + sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key in ("mean", "variance")
    )
    vectors = jax.eval_shape(
        lambda p: facenet.embed(graphdef, p, jnp.zeros((1, 160, 160, 3), jnp.uint8)), params
    )
    assert vectors.dtype == jnp.float32


def test_wrong_weights_are_named(arrays):
    broken = dict(arrays)
    del broken["conv2d_1a.conv.weight"]
    broken["repeat_1.0.conv2d.bias"] = np.zeros(3, np.float32)
    broken["something.weight"] = np.zeros(3, np.float32)
    broken["last_bn.bias"] = np.full(512, np.nan, np.float32)
    with pytest.raises(ModelFolderError) as caught:
        face_names.load("facenet", broken)
    for part in (
        "missing conv2d_1a.conv.weight",
        "repeat_1.0.conv2d.bias has shape (3,)",
        "surplus something.weight",
        "last_bn.bias holds numbers that are not finite",
    ):
        assert part in str(caught.value)
