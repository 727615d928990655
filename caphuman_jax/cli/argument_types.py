"""Types of command line arguments, for argparse."""

from __future__ import annotations

import argparse
import math

_MOST_DIGITS = 18
"""Of whole numbers: they fit into 64 bits, wherever they go."""


def integer(text: str) -> int:
    """A whole number. The command's parser uses it for every `type=int`."""
    value = int(text)
    if abs(value) >= 10**_MOST_DIGITS:
        raise argparse.ArgumentTypeError(
            f"a whole number has at most {_MOST_DIGITS} digits, not {len(text.strip())}"
        )
    return value


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    try:
        value = integer(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return value


def count(text: str) -> int:
    """A whole number from 0 on."""
    value = integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {text!r}")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def number(text: str) -> int | float:
    """A number; a whole one as int, since settings tell the two apart."""
    try:
        return int(text)
    except ValueError:
        return float(text)
