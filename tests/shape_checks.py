"""What checks annotations, shapes included, while tests run; conftest.py installs it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int may stand for a float, as in PEP 484.
_CHECKED = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """Checks the arguments and the result of each call of a function with annotations.

    Not of functions inside functions, which are made at each call, and not of the constructors of
    dataclasses: those that are pytrees hold shardings and shapes in place of arrays at times.
    """
    code: Any = getattr(function, "__code__", None)
    generated = code is not None and code.co_filename == "<string>"
    nested = "<locals>" in getattr(function, "__qualname__", "")
    if generated or nested or not function.__annotations__:
        return function
    return _CHECKED(function)
