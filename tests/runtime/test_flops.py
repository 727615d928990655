"""Operations, with and without what a matrix unit of 128 lanes fills up, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from caphuman_jax.runtime import flops


def attention(q, k, v):
    return jnp.einsum("bhlm,bmhd->blhd", jnp.einsum("blhd,bmhd->bhlm", q, k), v)


def convolution(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def kernel_gradient(x, kernel):
    return jax.grad(lambda kernel: jnp.sum(convolution(x, kernel) ** 2))(kernel)


HEADS = [(2, 256, 8, 40)] * 3
CASES = {
    "product": (jnp.matmul, [(5, 40), (40, 300)], 2 * 5 * 40 * 300, 2 * 5 * 128 * 384),
    "attention": (attention, HEADS, 2 * 2 * 16 * 256**2 * 40, 2 * 16 * 256**2 * (128 + 40)),
    "text": (  # 77 keys are summed over as 128
        attention,
        [(2, 256, 8, 40), (2, 77, 8, 40), (2, 77, 8, 40)],
        2 * 2 * 16 * 256 * 77 * 40,
        2 * 16 * 256 * (77 * 128 + 128 * 40),
    ),
    "convolution": (
        convolution,
        [(1, 8, 8, 4), (3, 3, 4, 320)],
        2 * 64 * 9 * 4 * 320,
        2 * 64 * 9 * 128 * 384,
    ),
    "training attention": (  # of 2 products and 4 of their gradients, 2 sum over a width
        jax.grad(lambda *heads: jnp.sum(attention(*heads) ** 2), (0, 1, 2)),
        HEADS,
        6 * 2 * 16 * 256**2 * 40,
        2 * 16 * 256**2 * (2 * 128 + 4 * 40),
    ),
    "training a dense layer": (  # forward, and the gradient's sum over 100 rows
        jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)),
        [(40, 300), (100, 40)],
        2 * 2 * 100 * 40 * 300,
        2 * 128 * min(100 * 384, 128 * 300) + 2 * 128 * min(40 * 384, 128 * 300),
    ),
    "training a convolution": (  # the gradient sums 3 · 8 · 8 = 192 positions, 256 with zeros
        kernel_gradient,
        [(3, 8, 8, 4), (3, 3, 4, 320)],
        2 * (2 * 3 * 64 * 9 * 4 * 320),
        9 * 2 * 128 * min(192 * 384, 256 * 320) + 9 * 2 * 256 * min(4 * 384, 128 * 320),
    ),
    "by channel": (
        lambda x, k: convolution(x, k, 4),
        [(1, 8, 8, 4), (3, 3, 1, 4)],
        2 * 64 * 9 * 4,
        2 * 64 * 9 * 4,
    ),
    "loop": (
        lambda x, w: jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x),
        [(5, 40), (40, 40)],
        3 * 2 * 5 * 40 * 40,
        3 * 2 * 5 * 128 * 128,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_counts(name):
    function, shapes, plain, filled = CASES[name]
    traced = jax.make_jaxpr(function)(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    )
    assert flops.of(traced) == plain == flops.of(traced, 1) and flops.of(traced, 128) == filled
