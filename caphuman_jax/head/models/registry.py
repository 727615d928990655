"""The head models by name. To add one, write a module with a SOURCE and name it in HEADS."""

from __future__ import annotations

import functools
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

from caphuman_jax.errors import HeadError

# By module name, so that the command line can list the heads without importing any of them.
HEADS = {
    "anny": "caphuman_jax.head.models.anny",
    "flame": "caphuman_jax.head.models.deca_head",
}
SHIPPED = "anny"
"""The head that comes with the package."""


def find(name: str = SHIPPED):
    """The source and the path of a head model.

    Args:
        name: One of HEADS, or the file or folder of a model whose source opens paths.

    Returns:
        (HeadSource, path); the path is None for a name.

    Raises:
        HeadError: There is no such model.
    """
    if name in HEADS:
        return _source(name), None
    path = pathlib.Path(name).expanduser()
    opens = {known: _source(known) for known in HEADS if _source(known).opens_paths}
    if path.exists():
        for source in opens.values():
            return source, path
    raise HeadError(
        f"there is no head model named {name!r}; known: {', '.join(HEADS)}, or the file or folder "
        f"of a model of {' or '.join(opens)}"
    )


@functools.cache
def load_head(name: str = SHIPPED):
    """A `HeadModel` as NumPy arrays; no device is touched. `name`: see `find`. Raises HeadError."""
    source, path = find(name)
    return source.load(path)


def load_estimator(name: str, networks: Mapping[str, tuple[Any, dict]]):
    """The `HeadEstimator` of a head model; None where it has none, or a network is missing.

    Args:
        name: see `find`.
        networks: {network of a model folder: (graphdef, parameters)}.

    Raises:
        HeadError: there is no such model.
    """
    source, path = find(name)
    there = {network: networks[network] for network in source.networks if network in networks}
    return source.estimator(load_head(name), path, there)


def estimated_by(network: str) -> str | None:
    """Name of the head model whose heads this network of a model folder estimates."""
    return next((name for name in HEADS if network in _source(name).networks), None)


def _source(name: str):
    return importlib.import_module(HEADS[name]).SOURCE
