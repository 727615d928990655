"""The parity folder: recorded outputs of the original networks, and the recipe that makes their
weights and inputs.

`CAPHUMAN_PARITY` names the folder; the default is the copy beside these tests.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pytorch_weights import from_pytorch

from caphuman_jax.config import IdentityConfig, ModelConfig, UNetConfig, VAEConfig
from caphuman_jax.models import registry
from caphuman_jax.weights.names import PREFIXES

FOLDER = Path(os.environ.get("CAPHUMAN_PARITY", Path(__file__).parent / "data"))

CONFIGS = {
    "small": ModelConfig(
        name="small",
        unet=UNetConfig(
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(1, 2),
            cross_attention_dim=64,
        ),
        identity=IdentityConfig(image_width=96),
        vae=VAEConfig(encoder_channels=32, decoder_channels=32),
    ),
    "full": ModelConfig(),
}


class Recipe(Mapping):
    """Weights by PyTorch name, each made when it is asked for."""

    def __init__(self, parity: "Parity", shapes: dict[str, list[int]]):
        self.parity = parity
        self.shapes = shapes

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        normal = self.parity.normal(name, shape)
        if len(shape) >= 2:
            return normal / np.float32(np.sqrt(np.prod(shape[1:])))
        return (
            1 + np.float32(0.1) * normal if name.endswith("weight") else np.float32(0.05) * normal
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Parity:
    """What the tests read from the folder."""

    configs = CONFIGS

    def __init__(self, folder: Path):
        self.folder = folder
        self.seed = self.json("recipe")["seed"]

    def recorded(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def json(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text())

    def generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def normal(self, name: str, shape) -> np.ndarray:
        return self.generator(name).standard_normal(tuple(shape), dtype=np.float32)

    def image(self, name: str, shape) -> jax.Array:
        """The input `name` of PyTorch shape (B, C, H, W), as NHWC."""
        return jnp.asarray(self.normal(name, shape).transpose(0, 2, 3, 1))

    def tokens(self, name: str, shape) -> jax.Array:
        return jnp.asarray(self.normal(name, shape))

    def network(self, name: str, size: str) -> tuple[nnx.GraphDef, dict]:
        """A network of `small` or `full`, filled by the recipe."""
        cfg = CONFIGS[size]
        graphdef, shapes = registry.abstract(cfg, only=(name,))[name]
        if name in ("text", "image_encoder"):
            prefix, parameters = (
                "",
                self.json("clip_parameters")["clip_text" if name == "text" else "clip_vision"],
            )
        else:
            prefix, parameters = PREFIXES[name], self.json(f"{size}_parameters")
        if name == "identity":  # Its two layers have no common prefix.
            parameters = {
                key: shape
                for key, shape in parameters.items()
                if key.startswith(("id_linear", "img_linear"))
            }
        weights = Recipe(self, parameters)
        return graphdef, from_pytorch(name, cfg, shapes, weights, prefix=prefix, put=jnp.asarray)

    @staticmethod
    def error(ours: jax.Array, theirs: np.ndarray) -> float:
        """max|a − b| / max|b|; theirs is NCHW if it has four axes."""
        theirs = theirs.astype(np.float32)
        if theirs.ndim == 4:
            theirs = theirs.transpose(0, 2, 3, 1)
        ours = np.asarray(ours)
        assert ours.shape == theirs.shape
        assert np.isfinite(ours).all()
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="session")
def parity() -> Parity:
    return Parity(FOLDER)


@pytest.fixture(autouse=True, scope="module")
def free_memory():
    """Compiled programs hold on to memory; full-size networks need it."""
    yield
    jax.clear_caches()
