"""An error's text through a Beam runner, which passes on nothing but text."""

from __future__ import annotations

import re

_MARKED = re.compile(r"caphuman says<<(.*?)>>", re.DOTALL)


def wrap_error(error: Exception) -> str:
    """The error's message in markers, so that `extract_error` finds it in the runner's output."""
    return f"caphuman says<<{error}>>"


def extract_error(output: str) -> str | None:
    """The last wrapped message in the output, on one line; None if there is none."""
    found = _MARKED.findall(output)
    return " ".join(found[-1].split()) if found else None
