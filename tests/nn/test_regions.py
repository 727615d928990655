"""Cross-attention to several texts by region, against NumPy in float64, position by position."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.nn.blocks import Attention, RegionKeysValues, TransformerBlock
from caphuman_jax.nn.compute_config import ComputeConfig

BATCH, LENGTH, TOKENS, WIDTH, DIM, HEADS, REGIONS = 2, 12, 5, 16, 10, 4, 3


@pytest.fixture
def layer():
    return Attention(WIDTH, DIM, HEADS, compute=ComputeConfig(), rngs=nnx.Rngs(0))


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(layer, x, texts, weights):
    """x (L, W), texts (R, S, D), weights (R, L): every position's softmax over each text."""
    kernel = lambda part: np.asarray(part.kernel[...], np.float64)
    out = np.zeros((LENGTH, WIDTH))
    for position in range(LENGTH):
        query = x[position].astype(np.float64) @ kernel(layer.query)
        for text, weight in zip(texts.astype(np.float64), weights[:, position]):
            key, value = text @ kernel(layer.key), text @ kernel(layer.value)
            for head in range(HEADS):
                own = np.s_[head * WIDTH // HEADS : (head + 1) * WIDTH // HEADS]
                score = np.exp(key[:, own] @ query[own] / np.sqrt(WIDTH // HEADS))
                out[position, own] += weight * (score / score.sum()) @ value[:, own]
    return out @ kernel(layer.out) + np.asarray(layer.out.bias[...])


def test_each_position_sees_its_texts(layer):
    x, texts = drawn(1, BATCH, LENGTH, WIDTH), drawn(2, BATCH, REGIONS, TOKENS, DIM)
    weights = np.random.default_rng(3).dirichlet(np.ones(REGIONS), (BATCH, LENGTH))
    weights[:, :6] = np.eye(REGIONS)[[0, 1, 2, 2, 1, 0]]
    weights = weights.transpose(0, 2, 1).astype(np.float32)
    keys, values = layer.keys_values(jnp.asarray(texts.reshape(BATCH, -1, DIM)))
    made = layer(jnp.asarray(x), RegionKeysValues(keys, values, jnp.asarray(weights)))
    wanted = [dense(layer, *row) for row in zip(x, texts, weights)]
    np.testing.assert_allclose(made, wanted, atol=2e-5)


def test_a_block_with_two_branches_shares_the_regions():
    """Each of the kB contexts meets the regions of its own picture."""
    block = TransformerBlock(WIDTH, DIM, HEADS, groups=4, compute=ComputeConfig(), rngs=nnx.Rngs(0))
    block.proj_out.kernel[...] = jnp.asarray(drawn(5, WIDTH, WIDTH))
    x = jnp.asarray(drawn(1, BATCH, 3, 4, WIDTH))
    texts = jnp.asarray(drawn(2, 2 * BATCH, REGIONS, TOKENS, DIM))
    region = np.random.default_rng(4).integers(0, REGIONS, (BATCH, LENGTH))
    weights = jnp.asarray(np.eye(REGIONS, dtype=np.float32)[region].transpose(0, 2, 1))
    pair = block.cross_attention.keys_values(texts.reshape(2 * BATCH, -1, DIM))
    made = block(x, RegionKeysValues(*pair, weights))
    alone = [np.asarray(block(x, texts[:, i])) for i in range(REGIONS)]
    for row in range(2 * BATCH):
        for position in range(LENGTH):
            at = np.unravel_index(position, (3, 4))
            wanted = alone[region[row % BATCH, position]][row][at]
            np.testing.assert_allclose(made[row][at], wanted, atol=2e-5)
