"""Rows of a table: the same numbers as plain indexing, with a gradient that adds up in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.nn.embeddings import rows
from caphuman_jax.runtime import sharding


def case(places=(4, 77), numbers=50, width=8):
    """Captions of which most places hold the last number."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, numbers, places).astype(np.int32)
    ids[:, 10:] = numbers - 1
    return (
        rng.standard_normal((numbers, width), np.float32),
        ids,
        rng.standard_normal((*places, width), np.float32),
    )


def gradient(table, ids, towards):
    return jax.grad(
        lambda t: jnp.sum(rows(t, ids).astype(towards.dtype) * towards, dtype=jnp.float32)
    )(table)


def expected(table, ids, towards):
    found = np.zeros(table.shape, np.float64)
    np.add.at(found, ids.reshape(-1), np.asarray(towards, np.float64).reshape(-1, table.shape[1]))
    return found


@pytest.mark.parametrize("places", [(4, 77), (3, 1), (1, 1)])
def test_the_same_as_adding_one_by_one(places):
    table, ids, towards = case(places)
    np.testing.assert_array_equal(rows(table, ids), table[ids])
    np.testing.assert_allclose(
        jax.jit(gradient)(table, ids, towards), expected(table, ids, towards), rtol=1e-6, atol=1e-5
    )


def test_half_precision_adds_up_in_float32():
    """280 rows of one number, each rounded to bfloat16 on the way in, their sum not at all: plain
    indexing of a bfloat16 table is off by more.
    """
    table, ids, towards = case()
    towards = jnp.asarray(towards, jnp.bfloat16)
    wanted = expected(table, ids, towards)
    off = lambda found: float(np.abs(np.asarray(found, np.float64) - wanted).max())
    plain = jax.grad(lambda t: jnp.sum(t.astype(jnp.bfloat16)[ids] * towards, dtype=jnp.float32))(
        jnp.asarray(table)
    )
    assert off(jax.jit(gradient)(table, ids, towards)) < 1e-4 < 0.05 < off(plain)


def test_split_over_devices():
    table, ids, towards = case((8, 77))
    mesh = sharding.make_mesh()
    by_batch, whole = sharding.by_batch(mesh), sharding.replicated(mesh)
    found = jax.jit(gradient, in_shardings=(whole, by_batch, by_batch), out_shardings=whole)(
        jax.device_put(table, whole),
        jax.device_put(ids, by_batch),
        jax.device_put(towards, by_batch),
    )
    np.testing.assert_allclose(found, expected(table, ids, towards), rtol=1e-6, atol=1e-5)
