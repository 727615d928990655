"""`jax.jit` for the functions that every start runs once: their compiled programs are kept between
processes, so that a new process neither traces nor compiles them.

JAX's own cache spares the compiler alone; tracing and lowering a fit takes as long as compiling it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from caphuman_jax.runtime import compile_cache, executables


def jit(function: Callable | None = None, *, static_argnames: tuple[str, ...] = ()) -> Any:
    """`jax.jit`, as a decorator, for functions of arrays on the first device.

    Args:
        function: is traced. Its static arguments come last.
        static_argnames: of `jax.jit`; their `repr` is part of the key.
    """
    if function is None:
        return functools.partial(jit, static_argnames=static_argnames)
    return KeptFunction(function, static_argnames)


class KeptFunction:
    """A function with its compiled programs. Within a trace, on other devices than the first, or
    where nothing is kept (`compile_cache.keep_compiled`), it is what `jax.jit` makes of it.
    """

    def __init__(self, function: Callable, static_argnames: tuple[str, ...]):
        functools.update_wrapper(self, function)
        self._function, self._static = function, static_argnames
        self._jit = jax.jit(function, static_argnames=static_argnames)
        self._signature = inspect.signature(function)
        self._programs: dict[tuple, jax.stages.Compiled] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        elsewhere = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
        if elsewhere is not None or not compile_cache.keeps_compiled():
            return self._jit(*args, **options)
        given = self._signature.bind(*args, **options)
        given.apply_defaults()
        static = {name: given.arguments.pop(name) for name in self._static}
        arguments = tuple(given.arguments.values())
        leaves, structure = jax.tree.flatten(arguments)
        if not all(_is_here(leaf) for leaf in leaves):
            return self._jit(*arguments, **static)
        kinds = tuple((np.shape(leaf), leaf.dtype) for leaf in leaves)
        precision = jax.config.jax_default_matmul_precision  # pyrefly: ignore[missing-attribute]
        key = (structure, kinds, *static.values(), precision)
        if key not in self._programs:
            store = executables.shared(compile_cache.cache_folder() / "executables")
            name = f"{self._function.__module__}.{self._function.__qualname__}"
            compile = functools.partial(self._compile, arguments, static)
            self._programs[key] = store.get(compile, (name, static), arguments)
        return self._programs[key](*arguments)

    def _compile(self, arguments: tuple, static: dict[str, Any]) -> jax.stages.Compiled:
        kept = jax.jit(executables.named(self._function), static_argnames=self._static)
        return kept.lower(*arguments, **static).compile()


def _is_here(leaf: Any) -> bool:
    """Whether a program of the first device takes this leaf of its arguments."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return True
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    return leaf.sharding.device_set == {jax.devices()[0]}
