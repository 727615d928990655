"""CLIP ViT-L/14's two encoders against their recorded outputs."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

pytestmark = pytest.mark.slow


def run(parity, name, inputs):
    graphdef, params = parity.network(name, "full")
    return jax.jit(lambda params, inputs: nnx.merge(graphdef, params)(inputs))(params, inputs)


def test_text(parity):
    recorded = parity.recorded("clip")
    hidden, pooled = run(parity, "text", jnp.asarray(recorded["token_ids"], jnp.int32))
    assert parity.error(hidden, recorded["text_last_hidden"]) < 1e-4
    assert parity.error(pooled, recorded["text_pooled"]) < 1e-4


def test_image(parity):
    recorded = parity.recorded("clip")
    hidden, pooled = run(parity, "image_encoder", parity.image("in/clip_image", (1, 3, 224, 224)))
    assert parity.error(hidden[:, ::4], recorded["vision_last_hidden"]) < 1e-4
    assert parity.error(pooled, recorded["vision_pooled"]) < 1e-4
