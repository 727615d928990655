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


def of(traced: core.ClosedJaxpr) -> int:
    """Operations of what was traced."""
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _of(needed)


def _of(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return (
            2
            * _size(equation.outvars[0])
            * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        )
    if name == "conv_general_dilated":
        # Zeros that a transposed convolution puts between the entries of an input are not worked
        # with.
        kernel, output = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        products = (
            2
            * _size(equation.outvars[0])
            * math.prod(kernel)
            // kernel[output[0]]
            // params["batch_group_count"]
        )
        return products // math.prod(params["lhs_dilation"])
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in params["branches"])
    inner = [found for value in params.values() for found in _jaxprs(value)]
    times = (
        params["length"]
        if name == "scan"
        else equation.params["mesh"].size
        if name == "shard_map"
        else 1
    )
    return times * sum(_of(jaxpr) for jaxpr in inner)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, core.Jaxpr) else []


def _size(variable) -> int:
    return math.prod(variable.aval.shape)
