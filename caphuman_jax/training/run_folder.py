"""The work folder of a run: what it holds is of one run, and where that run came from.

config.json: the configuration as it was asked for. settings.json: what decides the numbers, for
people. starts.jsonl: a line for each start. None of them is written before everything that a start
can be refused for has been checked.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from caphuman_jax import __version__
from caphuman_jax.errors import DataError
from caphuman_jax.io import atomic, buckets, folder_lock, json_reader
from caphuman_jax.training.recipe import Recipe

_LOCK = ".lock"
MAY_CHANGE = ("loop", "data", "loader", "evaluators")
"""Entries of a configuration that may be others when a run is resumed."""


def identity(recipe: Recipe) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON values; each checkpoint holds it."""
    settings = json.loads(json.dumps(recipe.settings))
    return {"settings": settings, "frozen": dict(recipe.frozen_hashes)}


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raises DataError, naming every entry that differs, where `where` is of another run."""
    found = differences(before, now)
    if found:
        raise DataError(
            f"{where} is of another run: {'; '.join(found)}; choose another --workdir, or the same "
            f"settings"
        )


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    show: Callable[[Any], str] = repr,
    prefix: str = "",
) -> list[str]:
    """ "KEY was A, is B" for every differing entry of nested dicts."""
    found = []
    for key in sorted({*before, *now}, key=str):
        name = f"{prefix}{key}"
        if key not in now:
            found.append(f"{name} was {show(before[key])}, is gone")
        elif key not in before:
            found.append(f"{name} is new, {show(now[key])}")
        elif before[key] == now[key]:
            continue
        elif isinstance(before[key], Mapping) and isinstance(now[key], Mapping) and show is repr:
            found += differences(before[key], now[key], show, name + ".")
        else:
            found.append(f"{name} was {show(before[key])}, is {show(now[key])}")
    return found


@contextlib.contextmanager
def locked(workdir: Path) -> Generator[None]:
    """Keep a second run away from the same folder while the block runs.

    The operating system releases the lock when the process ends for any reason. Where a file
    system has no locks, nothing is locked.

    Raises:
        DataError: where another process trains in the folder.
    """
    if jax.process_index() != 0:
        yield
        return
    taken = (
        f"another caphuman train is running in {workdir}; wait for it, stop it, or choose another "
        f"--workdir"
    )
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(folder_lock.held(workdir / _LOCK, taken))
        except OSError as error:
            raise _unwritable(workdir, error) from error
        yield


def check_config(workdir: Path, name: str, config) -> None:
    """Raises DataError where the folder holds a run of another configuration."""
    path = workdir / "config.json"
    deciding = lambda content: {
        key: value for key, value in content["config"].items() if key not in MAY_CHANGE
    }
    try:
        if path.exists():
            now = _config_content(name, config)
            check_same_run(deciding(json_reader.read(path)), deciding(now), str(workdir))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def keep_config(workdir: Path, name: str, config) -> None:
    """Writes WORKDIR/config.json, which `caphuman export` reads. Raises DataError where it cannot
    be written.
    """
    path = workdir / "config.json"
    try:
        atomic.write_text(path, json.dumps(_config_content(name, config), indent=1))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


def _config_content(name: str, config) -> dict[str, Any]:
    return json.loads(json.dumps({"name": name, "config": config.to_dict()}))


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration that `keep_config` wrote."""
    return json_reader.read(workdir / "config.json")["config"]


def forget(workdir: Path) -> None:
    """Removes the folder if nothing was written to it."""
    with contextlib.suppress(OSError):
        if {path.name for path in workdir.iterdir()} <= {_LOCK}:
            (workdir / _LOCK).unlink(missing_ok=True)
            workdir.rmdir()


def is_run(path: str | os.PathLike) -> bool:
    """Whether a folder is the work folder of a training run."""
    checkpoints = epath.Path(checkpoint_folder(Path(path)))
    return (Path(path) / "config.json").is_file() and checkpoints.is_dir()


def checkpoint_folder(workdir: Path) -> str | Path:
    """Where a run's checkpoints are: in the bucket, if `workdir` is the stand-in of one."""
    url = buckets.url_of(workdir)
    return workdir / "checkpoints" if url is None else f"{url}/checkpoints"


def prepare(workdir: Path) -> None:
    """Makes the work folder.

    Raises:
        DataError: it cannot be written, or a host does not see it.
    """
    shared = jax.process_count() > 1 and buckets.url_of(workdir) is None
    mark = workdir / ".seen"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if shared and jax.process_index() == 0:
            mark.touch()
    except OSError as error:
        raise _unwritable(workdir, error) from error
    if shared:
        multihost_utils.sync_global_devices("workdir")
        seen = multihost_utils.process_allgather(np.int32(mark.exists()))
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)
        if not seen.all():
            raise DataError(
                f"host {int(np.argmin(seen))} does not see {workdir}: --workdir has to be a folder "
                f"that all hosts share"
            )


def keep_settings(workdir: Path, recipe: Recipe) -> None:
    """Writes settings.json, on the first host. Raises DataError where it cannot be written."""
    if jax.process_index() != 0:
        return
    content = {"recipe": recipe.name, **identity(recipe)}
    try:
        atomic.write_text(workdir / "settings.json", json.dumps(content, indent=1))
    except OSError as error:
        raise _unwritable(workdir, error) from error


def remove_empty(*folders: str | Path) -> None:
    """Removes those of the folders that are empty. Folders in buckets do not exist while they are
    empty.
    """
    for folder in folders:
        if not buckets.is_url(str(folder)):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _unwritable(workdir: Path, error: OSError) -> DataError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "it, or a part of its path, is a file"
    else:
        reason = str(error)
    return DataError(f"the work folder {workdir} cannot be written: {reason}")


def log_run_start(workdir: Path, step: int) -> None:
    """Adds a line to WORKDIR/starts.jsonl: when, at which step, by which code, versions and
    devices.
    """
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    entry = {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "arguments": sys.argv[1:],
        "caphuman_jax": __version__,
        "git": git_state(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": dict(kinds),
        "hosts": jax.process_count(),
    }
    with open(workdir / "starts.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def git_state() -> dict[str, Any]:
    """{"commit", "dirty": changed files} of the checkout that this code runs from; {} where it is
    not in one.
    """
    here = ["git", "-C", str(Path(__file__).resolve().parent)]
    ask = lambda *words: (
        subprocess.run(
            [*here, *words], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    )
    try:
        commit = ask("rev-parse", "HEAD").strip()
        changed = ask("status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": [line[3:] for line in changed]}
