"""Numbers of a report as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WRITTEN = {"degrees": "°", "share": "%", "points": "points"}
_MOST_PLACES = {"degrees": 2, "share": 1, "points": 1}  # what is below cannot be measured
_THIN = "\u202f"


def show(value: float | None, unit: str = "", empty: str = "") -> str:
    """Three digits and the unit; `empty` for None and NaN. Degrees are written as °, and shares as
    percentages.
    """
    if value is None or not math.isfinite(value):
        return empty
    return f"{_digits(value, unit)}{suffix(unit)}"


def show_range(low: float, high: float, unit: str = "", empty: str = "") -> str:
    """ "low–high" and the unit; "to" stands between them where a number is negative."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return empty
    between = "–" if low >= 0 and high >= 0 else " to "
    alike = max(_places(low, unit), _places(high, unit)) if abs(high) * scale(unit) < 10 else None
    return f"{_digits(low, unit, alike)}{between}{_digits(high, unit, alike)}{suffix(unit)}"


def scale(unit: str) -> float:
    """What numbers are multiplied by to be shown."""
    return 100.0 if unit in ("share", "points") else 1.0


def unit_of_difference(unit: str) -> str:
    """The unit of a difference: shares differ by percentage points."""
    return "points" if unit == "share" else unit


def suffix(unit: str) -> str:
    """What stands after a number of some unit."""
    unit = _WRITTEN.get(unit, unit)
    return unit if unit in ("", "°") else _THIN + unit


def as_heading(title: str) -> str:
    """A title at the beginning of a line: "yaw error" becomes "Yaw error", and "jawOpen" stays."""
    return title[:1].upper() + title[1:] if title.partition(" ")[0].islower() else title


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; with semicolons where a word has a comma."""
    if any("," in word for word in words[:-1]):
        return "; ".join([*words[:-1], f"and {words[-1]}"])
    head = ", ".join(words[:-1])
    return f"{head} and {words[-1]}" if head else "".join(words)


def _places(value: float, unit: str) -> int:
    value = abs(value) * scale(unit)
    places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return min(places, _MOST_PLACES.get(unit, 3))


def _digits(value: float, unit: str, places: int | None = None) -> str:
    text = f"{value * scale(unit):.{_places(value, unit) if places is None else places}f}"
    return text.replace("-", "−") if float(text) else "0"
