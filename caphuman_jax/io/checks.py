"""Checks of numbers and paths that people give: on the command line, in files and in Python."""

from __future__ import annotations

import math
from typing import Any

from caphuman_jax.errors import CapHumanError, SettingError


def number(
    name: str,
    value: Any,
    low: float,
    high: float,
    error: type[CapHumanError] = SettingError,
) -> float:
    """A finite number from `low` to `high`.

    Args:
        name: what the message calls it.
        value: a number, or a text that is one.
        low, high: the range; `high` may be infinite.
        error: the kind of error.

    Raises:
        CapHumanError: of that kind, where it is something else.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise error(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(found) or not low <= found <= high:
        least, most = _text(low), _text(high)
        wanted = f"lie between {least} and {most}" if high < math.inf else f"be at least {least}"
        raise error(f"{name} must {wanted}, not {_text(value)}")
    return found


def whole(name: str, value: Any, low: float, high: float) -> int:
    """A whole number from `low` to `high`. Raises SettingError."""
    found = number(name, value, low, high)
    if found != int(found):
        raise SettingError(f"{name} must be a whole number, not {value}")
    return int(found)


def path(
    name: str, value: Any, what: str = "a photo", error: type[CapHumanError] = SettingError
) -> None:
    """Refuse a path that is an empty or blank text; anything else passes.

    Args:
        name: what the message calls it.
        value: what was given.
        what: what it is the path of.
        error: the kind of error.

    Raises:
        CapHumanError: of that kind.
    """
    if isinstance(value, str) and not value.strip():
        raise error(f"{name} must not be empty; it is the path of {what}")


def _text(value: Any) -> str:
    """Whole numbers with all their digits, others with six."""
    if hasattr(value, "__index__"):
        return str(int(value))
    return value if isinstance(value, str) else f"{value:g}"
