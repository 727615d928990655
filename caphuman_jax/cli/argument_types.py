"""Types of command line arguments, for argparse."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return value


def number(text: str) -> int | float:
    """A number; a whole one as int, since settings tell the two apart."""
    try:
        return int(text)
    except ValueError:
        return float(text)
