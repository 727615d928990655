"""Filling our networks from PyTorch modules with random weights."""

import jax.numpy as jnp
import pytest
import torch
from flax import traverse_util
from pytorch_weights import from_pytorch

from caphuman_jax.models import registry
from caphuman_jax.weights.names import table


@pytest.fixture
def randomized():
    """Gives a PyTorch module weights of which none is zero or one, so that each of them matters."""

    def make(module: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:
                    parameter.copy_(
                        0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
                    )
        return module.eval()

    return make


@pytest.fixture
def filled():
    """Our network with a PyTorch module's weights, under the names of the form given: (graphdef,
    params).
    """

    def fill(network, cfg, state_dict, form="ldm"):
        graphdef, shapes = registry.abstract(cfg, only=(network,))[network]
        paths = traverse_util.flatten_dict(shapes, sep=".")
        original = {path: name for name, path in table(network, cfg, paths).items()}
        named = table(network, cfg, paths, form)
        arrays = {
            original[named[name]] if form != "ldm" else name: tensor.numpy()
            for name, tensor in state_dict.items()
        }
        return graphdef, from_pytorch(network, cfg, shapes, arrays, put=jnp.asarray)

    return fill
