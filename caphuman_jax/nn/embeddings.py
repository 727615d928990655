"""Rows of a table by number, with a gradient that does not queue up where many places hold the same
number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def rows(table, ids):
    """`table[ids]`: (V, D) and integers (...) in [0, V) -> (..., D).

    The gradient of the table adds up rows of the same number first and writes each number once.
    XLA's own adds them with atomics in turn: captions are filled up with their end token, thousands
    of times a batch. It also has the same bits in every run."""
    return table[ids]


def _forward(table, ids):
    return table[ids], (ids, table)


def _backward(kept, towards):
    ids, table = kept
    ids, towards = ids.reshape(-1), towards.reshape(-1, table.shape[1])
    order = jnp.argsort(ids)
    ids, towards = ids[order], towards[order]
    new = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    _, sums = jax.lax.associative_scan(_add_up, (new[:, None], towards.astype(jnp.float32)))
    last = jnp.concatenate([new[1:], jnp.ones(1, bool)])
    written = jnp.where(last, ids, len(table))  # beyond the table: left out
    return jnp.zeros_like(table).at[written].set(sums.astype(table.dtype), mode="drop"), None


def _add_up(left, right):
    """Sums that begin anew where `new`."""
    (left_new, left_sum), (right_new, right_sum) = left, right
    return left_new | right_new, jnp.where(right_new, right_sum, left_sum + right_sum)


rows.defvjp(_forward, _backward)
