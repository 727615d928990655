"""What checks the shapes and dtypes in annotations while tests run; conftest.py installs it."""

import typing
import warnings
from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from jaxtyping import AbstractArray


def check(function: Callable) -> Callable:
    """Checks arguments and result of each call of a function whose annotations give shapes.

    Other annotations are pyrefly's to check: what a user may give is checked by the code itself,
    and tests ask for its messages. Functions inside functions are left out, since they are made at
    each call.
    """
    shapes = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not shapes or "<locals>" in getattr(function, "__qualname__", ""):
        return function
    function.__annotations__ = shapes
    with warnings.catch_warnings():  # of annotations in flax
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(hint)))
