"""FaceNet, face parsing and DECA's encoder against the recorded outputs of the PyTorch networks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.weights import face_names

TOLERANCE = 1e-4


class Weights(Mapping):
    """A face network's arrays by PyTorch name, made by the recipe; running statistics have a rule
    of their own.
    """

    def __init__(self, parity, network):
        self.parity = parity
        self.shapes = parity.json("face_network_parameters")[network]

    def __getitem__(self, name):
        shape = self.shapes[name]
        normal = self.parity.normal(name, shape)
        if name.endswith("running_mean"):
            return np.float32(0.05) * normal
        if name.endswith("running_var"):
            return np.exp(np.float32(0.1) * normal)
        if len(shape) >= 2:
            return normal / np.float32(np.sqrt(np.prod(shape[1:])))
        return (
            1 + np.float32(0.1) * normal if name.endswith("weight") else np.float32(0.05) * normal
        )

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


@pytest.fixture(scope="module")
def recorded(parity):
    return parity.recorded("face_networks")


def run(network, inputs):
    graphdef, params = network
    return jax.jit(lambda params, inputs: nnx.merge(graphdef, params)(inputs))(
        jax.tree.map(jnp.asarray, params), inputs
    )


def test_facenet(parity, recorded):
    crops = np.float32(0.5) * parity.image("in/facenet_image", (2, 3, 160, 160))
    vectors = run(face_names.load("facenet", Weights(parity, "facenet")), crops)
    assert parity.error(vectors, recorded["facenet_embedding"]) < TOLERANCE


def test_face_parsing(parity, recorded):
    image = parity.image("in/parsing_image", (1, 3, 128, 128))
    logits = run(face_names.load("face_parsing", Weights(parity, "face_parsing")), image)
    assert parity.error(logits[:, ::4, ::4], recorded["parsing_logits_stride4"]) < TOLERANCE
    # Where two classes are level to within the tolerance, either may come first.
    best = np.sort(np.asarray(logits), axis=-1)
    clear = best[..., -1] - best[..., -2] > 2 * TOLERANCE * np.abs(best).max()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(
        np.asarray(logits).argmax(axis=-1)[clear], recorded["parsing_argmax"][clear]
    )


def test_deca_encoder(parity, recorded):
    crops = jax.nn.sigmoid(parity.image("in/deca_image", (2, 3, 224, 224)))
    codes = run(face_names.load("deca_encoder", Weights(parity, "deca_encoder")), crops)
    assert parity.error(codes, recorded["deca_parameters"]) < TOLERANCE
