"""Floating-point operations of a function, counted on what was traced: products and convolutions,
two for each multiplication and addition.

Compilers count what they made of it, which differs by platform and leaves out hand-written kernels;
this does not, so utilization (MFU) means the same everywhere. Trace without rematerialization and
with attention "xla" for the arithmetic that a model needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable, *args: Any) -> int:
    """Operations of `function(*args)`; the arguments may be shapes. Loops count as often as they
    run, a conditional as its most expensive branch, and what no result depends on is left out:
    gradients of frozen weights, for instance, are traced and dropped.
    """
    return of(jax.make_jaxpr(function)(*args))


def of(traced: core.ClosedJaxpr, lanes: int = 1) -> int:
    """Operations of what was traced.

    Args:
        traced: a function's program.
        lanes: side of the matrix unit. Channels and widths of heads count as the next multiple of
            it, as on a TPU, which fills them with zeros (heads of 40 become 128).
    """
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _of(needed, lanes)


def _of(jaxpr: core.Jaxpr, lanes: int) -> int:
    return sum(_of_equation(equation, lanes) for equation in jaxpr.eqns)


def _of_equation(equation, lanes: int) -> int:
    name, params = equation.primitive.name, equation.params
    filled = lambda count: -(-count // lanes) * lanes
    if name == "dot_general":
        (contracted, others), (_, batch) = params["dimension_numbers"]
        left, right = (factor.aval.shape for factor in equation.invars)
        summed = math.prod(left[i] for i in contracted)
        every = _size(equation.outvars[0])
        columns = math.prod(n for i, n in enumerate(right) if i not in (*others, *batch))
        if batch:  # attention, where einsum may have exchanged the factors: heads are the narrower
            rows = every // max(columns * math.prod(right[i] for i in batch), 1)
            columns = min(rows, columns)
        return 2 * (every // max(columns, 1)) * filled(columns) * filled(summed)
    if name == "conv_general_dilated":
        # Zeros that a transposed convolution puts between the entries of an input are not worked
        # with.
        kernel, output = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        outputs, inputs = kernel[output[0]], kernel[output[1]]
        if params["feature_group_count"] > 1:
            filled = lambda count: count
        products = (
            2
            * (_size(equation.outvars[0]) // outputs * filled(outputs))
            * (math.prod(kernel) // outputs // inputs * filled(inputs))
            // params["batch_group_count"]
        )
        return products // math.prod(params["lhs_dilation"])
    if name == "cond":
        return max(_of(branch.jaxpr, lanes) for branch in params["branches"])
    inner = [found for value in params.values() for found in _jaxprs(value)]
    times = (
        params["length"]
        if name == "scan"
        else equation.params["mesh"].size
        if name == "shard_map"
        else 1
    )
    return times * sum(_of(jaxpr, lanes) for jaxpr in inner)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, core.Jaxpr) else []


def _size(variable) -> int:
    return math.prod(variable.aval.shape)
