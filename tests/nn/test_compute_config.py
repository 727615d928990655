import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.models.network import split
from caphuman_jax.nn.blocks import TransformerBlock
from caphuman_jax.nn.compute_config import REMAT, ComputeConfig
from caphuman_jax.runtime import flops


def test_attention_backend_by_number_of_queries():
    compute = ComputeConfig(attention="1024=cudnn,256=xla")
    assert [compute.attention_for(n) for n in (4096, 1024, 300, 64)] == [
        "cudnn",
        "cudnn",
        "xla",
        "auto",
    ]


@pytest.mark.parametrize(
    "field, value", [("attention", "flash"), ("attention", "x=xla"), ("remat", "all")]
)
def test_unknown_choices_are_refused(field, value):
    with pytest.raises(ValueError, match=value):
        ComputeConfig(**{field: value})


def test_dtypes_of_one_name_are_one_configuration():
    assert ComputeConfig("bfloat16") == ComputeConfig(jnp.bfloat16)
    assert hash(ComputeConfig("bfloat16")) == hash(ComputeConfig(jnp.dtype(jnp.bfloat16)))


def test_remat_changes_arithmetic_but_no_gradient():
    def made(remat):
        compute = ComputeConfig(remat=remat)
        block = TransformerBlock(8, 8, 2, groups=4, compute=compute, rngs=nnx.Rngs(0))
        block.proj_out.kernel[...] = jnp.ones((8, 8))
        return compute, *split(block)

    x, context = jax.random.normal(jax.random.key(0), (1, 4, 4, 8)), jnp.ones((1, 3, 8))
    _, graph, params = made("none")

    def gradient(remat, params, x):
        compute, graph, _ = made(remat)
        return jax.grad(
            lambda params, x: jnp.sum(
                jnp.sin(compute.remat_block(nnx.merge(graph, params))(x, context))
            ),
            argnums=(0, 1),
        )(params, x)

    found = jax.jit(lambda *args: {remat: gradient(remat, *args) for remat in REMAT})(params, x)
    work = {remat: flops.count(functools.partial(gradient, remat), params, x) for remat in REMAT}
    for remat in REMAT[1:]:
        # Sums of terms much larger than some of the results: what rounding may change is a share of
        # the largest.
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found["none"]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest),
            found[remat],
            found["none"],
        )
        assert work[remat] > work["none"]
    forward = flops.count(lambda params, x: nnx.merge(graph, params)(x, context), params, x)
    assert work["blocks"] - work["none"] > 0.7 * forward > 3 * (work["products"] - work["none"])
