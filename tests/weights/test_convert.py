import numpy as np
import pytest
from pytorch_weights import from_pytorch

from caphuman_jax.config import SD15, IdentityConfig, ModelConfig, UNetConfig
from caphuman_jax.models import registry
from caphuman_jax.weights.names import table

SMALL = ModelConfig(
    unet=UNetConfig(cross_attention_dim=3),
    identity=IdentityConfig(recognition_width=2, image_width=4),
)


@pytest.fixture
def shapes():
    return registry.abstract(SMALL, only=("identity",))["identity"][1]


@pytest.fixture
def arrays():
    shapes = {
        "id_linear.weight": (3, 2),
        "id_linear.bias": (3,),
        "img_linear.weight": (3, 4),
        "img_linear.bias": (3,),
    }
    return {name: np.random.default_rng(0).standard_normal(shape) for name, shape in shapes.items()}


def test_fills_transposed_in_float32(shapes, arrays):
    params = from_pytorch("identity", SMALL, shapes, arrays)
    assert params["image"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(params["image"]["kernel"], arrays["img_linear.weight"].T, rtol=1e-6)
    np.testing.assert_allclose(params["recognition"]["bias"], arrays["id_linear.bias"], rtol=1e-6)


@pytest.mark.parametrize("network", ["unet", "capface", "identity", "vae", "text", "image_encoder"])
def test_tables_are_one_to_one_and_complete(network):
    from flax import traverse_util

    paths = traverse_util.flatten_dict(
        registry.abstract(SD15, only=(network,))[network][1], sep="."
    )
    names = table(network, SD15, paths)
    assert sorted(names.values()) == sorted(paths)
