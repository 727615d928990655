"""Compiled programs that are loaded without being traced again.

JAX's compilation cache spares the compiler, but its key is made from the lowered program, so every
process traces and lowers first: seconds at Stable Diffusion's size. Here the key is made from what
a program is traced from: the library's source, versions, device, options, static arguments, and
the shapes, types and layouts of arguments.

Files hold pickles, which can run code when they are read. So they are read and written only in a
folder that belongs to the user and that nobody else can write to.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import os
import pickle
import re
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

from caphuman_jax.io import atomic
from caphuman_jax.runtime.compile_cache import cpu_type

log = logging.getLogger("caphuman_jax")

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_UNRELATED = re.compile(
    "cache|_dir$|log|traceback|explain|dump|profile|pgle|color"
)  # options of JAX
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_HIT = "/jax/compilation_cache/cache_hits"
_NAME = re.compile("[0-9a-f]{40}")  # of a program, see `key`
_READERS = 2
_MOST_LISTED = 16  # a server would list what each of its requests took
_MOST_LISTS = 2  # by the command's arguments, and by the first request
T = TypeVar("T")
_FORMAT = 2  # of the files


class ExecutableStore:
    """A folder of compiled programs of this process's devices.

    Nothing here raises where a file cannot be read or written: the program is then compiled, as
    without a store.
    """

    def __init__(self, folder: Path):
        """Make the folder, if it does not exist, for this user alone."""
        self.folder: Path | None = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            self.folder = None
        if self.folder is not None and not _is_ours(self.folder):
            log.info("%s can be written by others; compiled programs are not kept there", folder)
            self.folder = None
        self._ahead: dict[str, Future] = {}
        self._lists: dict[Path, list[str]] = {}
        self._used: list[str] = []

    def expect(self, kind: Any) -> None:
        """Read the programs that the last process of this kind used, in threads, before they are
        asked for: reading a sampler takes a second on a CPU. From now on, this process is of that
        kind. Only the first calls of a process count.

        Args:
            kind: what decides about the programs, as far as it is known by now; its `repr` counts.
        """
        if self.folder is None or jax.process_count() > 1 or len(self._lists) == _MOST_LISTS:
            return
        path = self.folder / f"{key(kind, ())}.list"
        listed = self._read(path, lambda data: data.decode("ascii").split()) or []
        self._lists[path] = [name for name in listed if _NAME.fullmatch(name)]
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="executables")
        for name in self._lists[path]:
            if name not in self._ahead and name not in self._used:
                self._ahead[name] = pool.submit(self._read, self._path(name), _loaded)
        pool.shutdown(wait=False)

    def get(
        self, compile: Callable[[], jax.stages.Compiled], static: Any, arguments: Any
    ) -> jax.stages.Compiled:
        """The compiled program, from the folder or from `compile`, which is then kept.

        Args:
            compile: traces, lowers and compiles.
            static: everything that the program depends on besides arguments, the library's source
                and the device; its `repr` is part of the key.
            arguments: of the program, a tree of arrays.
        """
        if self.folder is None or jax.process_count() > 1:
            return compile()
        name = key(static, arguments)
        self._note(name)
        path, ahead = self._path(name), self._ahead.pop(name, None)
        found = self._read(path, _loaded) if ahead is None else ahead.result()
        if found is not None:
            return found
        hits = _listen()
        before = hits[0]
        compiled = compile()
        if hits[0] == before:  # one that JAX's cache gave lacks functions once it is stored again
            self._write(path, lambda: _stored(compiled))
        return compiled

    def graphs(self, make: Callable[[], T], static: Any) -> T:
        """What `make` returns, from the folder or from `make`: graphs and shapes of networks, which
        Flax takes a second to find at Stable Diffusion's size.

        Args:
            make: returns something that can be pickled.
            static: see `get`.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{key(static, ())}.graphs"
        found = self._read(path, pickle.loads)
        if found is None:
            found = make()
            self._write(path, lambda: pickle.dumps(found))
        return found

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.executable"

    def _note(self, name: str) -> None:
        """Add a program to the lists of those that such processes use."""
        if name in self._used:
            return
        self._used.append(name)
        for path, listed in list(self._lists.items()):
            if len(self._used) <= _MOST_LISTED and listed[: len(self._used)] != self._used:
                self._lists[path] = self._used[:]
                self._write(path, lambda: "\n".join(self._used).encode())

    def _read(self, path: Path, load: Callable[[bytes], T]) -> T | None:
        try:
            data = path.read_bytes()
            return load(data) if _is_ours(path) else None
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged, or of a runtime that does not take it
            log.info("%s is made again: %s", path, error)
            return None

    def _write(self, path: Path, dump: Callable[[], bytes]) -> None:
        try:
            data = dump()
            with atomic.file(path) as part:
                part.touch(mode=0o600)
                part.write_bytes(data)
        except Exception as error:  # the disk, or a program that cannot be serialized
            log.info("%s is not kept: %s", path, error)


def named(function: Callable) -> Callable:
    """The function with a name of its own in each version of the library, on a CPU.

    The name is part of the key of JAX's cache. What that cache gives on a CPU cannot be kept here,
    so every start after an update would trace again.
    """
    if jax.default_backend() != "cpu":
        return function

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    called.__name__ = f"{function.__name__}_{source_hash()[:12]}"
    return called


@functools.cache
def shared(folder: Path) -> ExecutableStore:
    """The store of a folder that all parts of a process use."""
    return ExecutableStore(folder)


def _stored(compiled: jax.stages.Compiled) -> bytes:
    calls_lapack = jax.default_backend() == "cpu" and "lapack_" in str(compiled.as_text())
    return pickle.dumps((calls_lapack, serialize_executable.serialize(compiled)))


def _loaded(data: bytes) -> jax.stages.Compiled:
    devices = jax.devices()[:1]
    calls_lapack, stored = pickle.loads(data)
    if calls_lapack:
        _find_lapack()
    return serialize_executable.deserialize_and_load(*stored, execution_devices=devices)


@functools.cache
def _find_lapack() -> None:
    """Lets JAX look up LAPACK's functions, as it does when it lowers a program that calls them: a
    program that is only loaded would call what is not there.
    """
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


def key(static: Any, arguments: Any) -> str:
    """A name for a program: 40 hexadecimal digits of everything that it is compiled from."""
    leaves, structure = jax.tree.flatten(arguments)
    parts = (
        _FORMAT,
        _environment(),
        _ADDRESS.sub("", repr(static)),
        structure,
        [_described(leaf) for leaf in leaves],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def _described(leaf: Any) -> tuple:
    layout = getattr(getattr(leaf, "format", None), "layout", None)
    usual = tuple(range(jax.numpy.ndim(leaf)))
    return jax.typeof(leaf), getattr(layout, "major_to_minor", usual)


def _environment() -> tuple:
    """What programs depend on besides their arguments."""
    device = jax.devices()[0]
    options = {k: v for k, v in jax.config.values.items() if not _UNRELATED.search(k)}
    return (
        source_hash(),
        _versions(),
        device.device_kind,
        getattr(device.client, "platform_version", ""),
        cpu_type() if device.platform == "cpu" else "",
        os.environ.get("XLA_FLAGS", ""),
        sorted(options.items()),
    )


@functools.cache
def source_hash() -> str:
    """Of the library's Python files: a changed file can change what is traced."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    return tuple(importlib.metadata.version(name) for name in _PACKAGES)


@functools.cache
def _listen() -> list[int]:
    """A list of one number: how many programs JAX's cache has given since the first call."""
    hits = [0]

    def count(event: str, **_: Any) -> None:
        hits[0] += event == _HIT

    jax.monitoring.register_event_listener(count)
    return hits


def _is_ours(path: Path) -> bool:
    """Whether a path belongs to this user and nobody else can write to it."""
    if not hasattr(os, "getuid"):
        return False
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
