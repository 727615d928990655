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


def count(function: Callable, *args: Any, lanes: int = 1) -> int:
    """Operations of `function(*args)`; the arguments may be shapes. Loops count as often as they
    run, a conditional as its most expensive branch, and what no result depends on is left out:
    gradients of frozen weights, for instance, are traced and dropped. lanes: see `of`.
    """
    return of(jax.make_jaxpr(function)(*args), lanes)


def of(traced: core.ClosedJaxpr, lanes: int = 1) -> int:
    """Operations of what was traced.

    Args:
        traced: a function's program.
        lanes: side of the matrix unit, 1 to fill nothing up. As on a TPU, what is summed over
            counts as the next multiple of it (heads of 40 as 128), and so do the rows or the
            columns of a result, whichever costs less: the others pass through the unit one by one.
    """
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _of(needed, lanes)


def _of(jaxpr: core.Jaxpr, lanes: int) -> int:
    return sum(_of_equation(equation, lanes) for equation in jaxpr.eqns)


def _of_equation(equation, lanes: int) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, others), (_, batch) = params["dimension_numbers"]
        left, right = (factor.aval.shape for factor in equation.invars)
        summed = math.prod(left[i] for i in contracted)
        pairs = math.prod(right[i] for i in batch)
        columns = math.prod(n for i, n in enumerate(right) if i not in (*others, *batch))
        rows = _size(equation.outvars[0]) // max(columns * pairs, 1)
        return pairs * _of_product(rows, summed, columns, lanes)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        outputs, inputs = (kernel[axis] for axis in numbers.rhs_spec[:2])
        window = math.prod(kernel) // outputs // inputs
        rows, groups = _size(equation.outvars[0]) // outputs, params["batch_group_count"]
        if params["feature_group_count"] * groups > 1:
            lanes = 1
        positions = math.prod(equation.outvars[0].aval.shape[axis] for axis in numbers.out_spec[2:])
        if window > positions:  # a kernel's gradient sums over all positions of the batch
            products = positions * _of_product(rows // positions, window * inputs, outputs, lanes)
        else:
            products = window * _of_product(rows, inputs, outputs, lanes)
        # Zeros that a transposed convolution puts between the entries of an input are not worked
        # with.
        return products // groups // math.prod(params["lhs_dilation"])
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


def _of_product(rows: int, summed: int, columns: int, lanes: int) -> int:
    filled = lambda count: -(-count // lanes) * lanes
    return 2 * filled(summed) * min(rows * filled(columns), filled(rows) * columns)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, core.Jaxpr) else []


def _size(variable) -> int:
    return math.prod(variable.aval.shape)
