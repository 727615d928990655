"""Configurations of training runs: files of configs/, overrides of the command line, and the recipe
that each names.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import math
import os
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import ml_collections

from caphuman_jax.config import rules as config_rules
from caphuman_jax.errors import CapHumanError, SettingError

RECIPES = {
    "mini": "caphuman_jax.training.recipes.mini",
    "sd15": "caphuman_jax.training.recipes.sd15",
}
"""A configuration's `recipe` → the module that builds it."""

_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
_LARGEST = 10**9
_RANGES: dict[str, config_rules.Range] = {
    "accumulate": (1, 65_536),
    "b1": (0, 0.999999),
    "b2": (0, 0.9999999),
    "batch_size": (1, 2**20),
    "color_share": (0, 1),
    "ema_decay": (0, 0.9999999),
    "fsdp": (0, 65_536),
    "learning_rate": (1e-12, 10),
    "lora_alpha": (0, 65_536),
    "lora_rank": (0, 65_536),
    "light": (1, 8),
    "log_every": (1, _LARGEST),
    "keep": (1, 10_000),
    "mirror": (0, 1),
    "roll_degrees": (0, 180),
    "roll_limit": (0, 180),
    "scale": (1, 8),
    "seed": (0, 2**32 - 1),
    "shift": (0, 1),
    "size": (8, 8192),
    "steps": (1, _LARGEST),
    "weight_decay": (0, 10),
}
"""Smallest and largest value of settings by name."""
_ENDINGS: tuple[tuple[str, config_rules.Range], ...] = (
    (r".*_prob(_.*)?", (0, 1)),
    (r".*_(weight|steps?|norm|gamma|every|noise)", (0, _LARGEST)),
)
"""The same by how a name ends. Other numbers only have to be finite."""
_DTYPES = ("auto", "bfloat16", "float32")

Settings = TypeVar("Settings")


def recipe_module(config: ml_collections.ConfigDict) -> ModuleType:
    """The module that a configuration's `recipe` names.

    It has SETTINGS, {entry of the configuration: its dataclass}; stages(config, workdir) → list of
    `Stage`; and export(config, workdir, params, folder, metadata), which writes a model folder; and
    perhaps abstract_recipe(config, mesh, platform) → (recipe, shapes of rows), for `caphuman
    compile`.

    Raises:
        CapHumanError: where there is no such module.
    """
    name = RECIPES.get(config.recipe, config.recipe)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise
        raise CapHumanError(
            f"recipe is {config.recipe!r}; known: {', '.join(RECIPES)}, or the name of a module"
        ) from error


def read_config(
    name: str, overrides: Sequence[str] = (), platform: str | None = None
) -> ml_collections.ConfigDict:
    """The configuration of configs/NAME.py, or of a file NAME.py.

    Args:
        name: of a file in configs/, without .py, or the path of one's own.
        overrides: entries `a.b=value`; their types are those of the configuration's values.
        platform: that it is for ("cpu", "gpu", "tpu"); None: JAX's default backend. It decides
            what the value "auto" of an entry `dtype` becomes: "float32" on CPUs, which do not
            compute faster in bfloat16, else "bfloat16".

    Raises:
        CapHumanError: for an unknown name or entry, or a value of another type.
    """
    config = raw_config(name)
    for entry in overrides:
        key, equals, value = entry.partition("=")
        path = key.split(".")
        place = config
        try:
            for part in path[:-1]:
                place = place[part]
            before = place[path[-1]]
        except (KeyError, TypeError) as error:
            raise CapHumanError(
                f"{entry}: the configuration has no entry {'.'.join(path)}"
            ) from error
        if not equals:
            raise CapHumanError(f"{entry}: write --config.{'.'.join(path)}=VALUE")
        if isinstance(before, ml_collections.ConfigDict):
            inside = ", ".join(f"--config.{'.'.join(path)}.{one}" for one in list(before)[:3])
            raise CapHumanError(f"{'.'.join(path)} holds settings; set one of them: {inside} …")
        try:
            place[path[-1]] = _parse(type(before), value)
        except (ValueError, TypeError) as error:
            wanted = _KINDS.get(type(before), f"of type {type(before).__name__}")
            raise CapHumanError(f"{'.'.join(path)} is {wanted}, not {value!r}") from error
    for part in config.values():
        if isinstance(part, ml_collections.ConfigDict) and part.get("dtype") == "auto":
            cpu = (platform or jax.default_backend()) == "cpu"
            part.dtype = "float32" if cpu else "bfloat16"
    return config


def from_config(cls: type[Settings], entries: Mapping[str, Any], where: str) -> Settings:
    """A dataclass of settings from the entries of a configuration.

    Args:
        cls: the dataclass; a field that is a dataclass itself may be given as nested entries.
        entries: {field: value}; fields that are left out have their defaults.
        where: the name of these entries, for messages.

    Raises:
        SettingError: for an unknown entry, or a value of another type or out of its range.
    """
    if not isinstance(entries, Mapping | ml_collections.ConfigDict):
        shown = config_rules.shown(entries)
        raise SettingError(f"{where} is {shown}; it holds settings, such as {where}.seed=1")
    kinds = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    values = {}
    for name, value in entries.items():
        if name not in known:
            raise SettingError(f"{where}.{name} is not a setting; known: {', '.join(known)}")
        kind = kinds[name]
        if dataclasses.is_dataclass(kind):
            value = from_config(kind, value, f"{where}.{name}")
        else:
            problem = config_rules.wrong(value, kind, _limits(name))
            if problem is None and name == "dtype" and value not in _DTYPES:
                problem = f"must be one of {', '.join(_DTYPES)}"
            if problem:
                shown = config_rules.shown(value)
                raise SettingError(f"{where}.{name} is {shown}; it {problem}")
            value = float(value) if kind is float else value
        values[name] = value
    return cls(**values)


def check_settings(config: ml_collections.ConfigDict) -> None:
    """Check the entries whose dataclasses the recipe names in its SETTINGS, before any data is
    read. Raises SettingError, see `from_config`.
    """
    for entry, cls in getattr(recipe_module(config), "SETTINGS", {}).items():
        if entry in config:
            from_config(cls, config[entry], entry)


def _limits(name: str) -> config_rules.Range:
    if name in _RANGES:
        return _RANGES[name]
    everything = (-math.inf, math.inf)
    return next((limits for form, limits in _ENDINGS if re.fullmatch(form, name)), everything)


def raw_config(name: str) -> ml_collections.ConfigDict:
    """The configuration as its file has it. Raises CapHumanError as `read_config` does."""
    module = _find_config(name)
    if not callable(getattr(module, "get_config", None)):
        raise CapHumanError(f"{name} is not a configuration: it has no function get_config()")
    config = _explained(name, module.get_config)
    if not isinstance(config, ml_collections.ConfigDict):
        raise CapHumanError(f"{name}: get_config() gives no ml_collections.ConfigDict")
    if not isinstance(config.get("recipe"), str):
        raise CapHumanError(f"{name} names no recipe; known: {', '.join(RECIPES)}")
    return config


def _explained(name: str, run: Callable[[], Any]) -> Any:
    """`run()`, whose errors are of the person's own file."""
    try:
        return run()
    except (CapHumanError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # somebody's own code may raise anything
        text = " ".join(str(error).split())[:200]
        raise CapHumanError(
            f"the configuration {name} cannot be run: {type(error).__name__}: {text}"
        ) from error


def _find_config(name: str) -> ModuleType:
    """The module configs/NAME.py: of the installed package, or of the checkout that is the working
    folder; or the file NAME.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            other = "it is not a regular file" if os.path.exists(name) else "there is no such file"
            raise CapHumanError(f"the configuration {name} cannot be read: {other}")
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None and spec.loader is not None, "Python files have a loader"
        module = importlib.util.module_from_spec(spec)
        loader = spec.loader
        _explained(name, lambda: loader.exec_module(module))
        return module
    for package in ("caphuman_jax.configs", "configs"):
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.{name}"):
                raise
    known = _shipped_configs()
    close = difflib.get_close_matches(name, known, 1)
    raise CapHumanError(
        f"there is no configuration {name!r}; "
        + (f"did you mean {close[0]}? " if close else "")
        + f"there are {', '.join(known)}, or the path of a file NAME.py"
    )


def _shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    for package in ("caphuman_jax.configs", "configs"):
        try:
            folders = importlib.import_module(package).__path__
        except ModuleNotFoundError:
            continue
        return sorted(module.name for module in pkgutil.iter_modules(folders))
    return []


def _parse(kind: type, text: str):
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)
