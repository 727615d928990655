"""Versions of what is installed, for reports and records."""

from __future__ import annotations

import importlib.metadata


def versions(*names: str) -> dict[str, str]:
    """{distribution: its version} of those that are installed, in the order of `names`."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
