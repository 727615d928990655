"""Pickles read without running anything that is in them.

A pickle is a small program; Python's own reader calls whatever function it names. Here a name is
looked up in a fixed table (`pickles.NAMES`) of inert builders that make containers, numbers and
arrays. Every other name ends the reading; or, where only a part of the content is wanted, it and
all that is made of it become an `Inert`, which the wanted part must not hold. Nothing is imported
on a file's behalf, and no method of an object that the file made is called."""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from caphuman_jax.errors import ModelFolderError


class Damaged(Exception):
    """What is read contradicts itself; becomes a ModelFolderError that names the file."""


class Refused(Exception):
    """The pickle asks for something that is not built."""


@dataclass(frozen=True)
class Name:
    """What a pickle gets where it names a class or function. `call(reader, *args)` builds; None: a
    mere marker, never called. unknown: it is not in the table.
    """

    name: str
    call: Callable[..., Any] | None = field(default=None, compare=False)
    value: Any = field(default=None, compare=False)
    unknown: bool = field(default=False, compare=False)


class Inert:
    """In place of what a pickle makes of a name that is not known. It has no state and no methods;
    whatever the pickle does to it is left out.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


def unknown_name(value: Any) -> str | None:
    """The name behind an `Inert` or an unknown `Name`; None for anything else."""
    if isinstance(value, Inert) or (isinstance(value, Name) and value.unknown):
        return value.name
    return None


class Reader(pickle._Unpickler):
    """Python's reader in Python, whose every way of reaching code is replaced; `names` is {(module,
    name): Name}; `inert`: whether other names become markers, instead of ending the reading.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    # Of Python's reader, which makes them when it begins to read.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(
        self,
        stream,
        names: Mapping[tuple[str, str], Name],
        size: int,
        persistent: Callable[[Any], Any] | None = None,
        inert: bool = False,
    ):
        super().__init__(stream, fix_imports=False, encoding="latin1")
        self.names, self.persistent, self.inert = names, persistent, inert
        self.budget = min(
            8 * size + 2**26, 2**31
        )  # bytes that builders may copy: a small file must not become a large one

    def spend(self, count: int) -> None:
        self.budget -= count
        if self.budget < 0:
            raise Refused("it asks for far more memory than its own size")

    def find_class(self, module: str, name: str) -> Name:
        module = _RENAMED.get(module, module)
        if module.startswith("numpy.core."):
            module = "numpy._core." + module.removeprefix("numpy.core.")
        found = self.names.get((module, name))
        if found is None and self.inert:
            return Name(f"{module}.{name}", unknown=True)
        if found is None:
            raise Refused(f"it names {module}.{name}, which {NOT_BUILT}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise Refused("it refers to objects outside of itself (persistent ids)")
        return self.persistent(pid)

    def get_extension(self, code: int) -> None:
        raise Refused(f"it uses extension code {code}")

    def invoke(self, function: Any, args: Any) -> Any:
        name = unknown_name(function)
        if name is not None:
            return Inert(name)
        if not isinstance(function, Name):
            raise Damaged(f"a {type(function).__name__} is called")
        if function.call is None and self.inert and function.value is None:
            return Inert(function.name)
        if function.call is None:
            raise Refused(f"it calls {function.name}")
        if type(args) is not tuple:
            raise Damaged("arguments are not a tuple")
        try:
            return function.call(self, *args)
        except TypeError as error:
            raise Damaged(
                f"{function.name} with arguments that do not suit it ({error})"
            ) from error

    def _instantiate(self, klass: Any, args: Any) -> None:  # of the opcodes INST and OBJ
        self.append(self.invoke(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.invoke(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        if keywords and unknown_name(self.stack[-2]) is None:
            raise Refused("it builds an object from keyword arguments")
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Built):
            target.set_state(self, state)
        elif (
            type(target) is not dict and unknown_name(target) is None
        ):  # attributes of an ordered dict (a state dict's versions) are left out
            name = target.name if isinstance(target, Name) else type(target).__name__
            raise Refused(f"it sets the state of {name}")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if type(target) is not dict or len(items) % 2:
            raise Damaged("entries of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def load_appends(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], Inert):
            return
        if type(self.stack[-1]) is not list:
            raise Damaged("items of something that is not a list")
        self.stack[-1].extend(items)

    def load_append(self) -> None:
        item = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            return
        if type(self.stack[-1]) is not list:
            raise Damaged("items of something that is not a list")
        self.stack[-1].append(item)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], Inert):
            return
        if type(self.stack[-1]) is not set:
            raise Damaged("items of something that is not a set")
        self.stack[-1].update(checked_key(item) for item in items)

    def load_frozenset(self) -> None:
        items = (
            self.pop_mark()
        )  # before `append` is looked up: it is that of another list afterwards
        self.append(frozenset(checked_key(item) for item in items))

    def load_bytearray8(
        self,
    ) -> None:  # Python's own allocates before it looks whether there is so much
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _refuse_buffers(self) -> None:
        raise Refused("it refers to buffers outside of itself")

    dispatch.update(
        {
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_reduce,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            pickle.BUILD[0]: load_build,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
            pickle.APPEND[0]: load_append,
            pickle.APPENDS[0]: load_appends,
            pickle.ADDITEMS[0]: load_additems,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.BYTEARRAY8[0]: load_bytearray8,
            pickle.NEXT_BUFFER[0]: _refuse_buffers,
            pickle.READONLY_BUFFER[0]: _refuse_buffers,
        }
    )


NOT_BUILT = "is neither a tensor nor a container nor a number"
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names


def checked_key(key: Any) -> Any:
    """Keys that are hashed fast; nested tuples that share parts would take exponential time."""
    simple = (str, bytes, int, float, type(None), Name, Inert)
    if isinstance(key, simple) or (
        type(key) is tuple and all(isinstance(part, simple) for part in key)
    ):
        return key
    raise Refused(f"a key is a {type(key).__name__}")


class Built:
    """Something whose state comes after it. `finish` gives what it stands for, when all is read."""

    def set_state(self, reader: Reader, state: Any) -> None:
        raise Refused(f"it sets the state of {type(self).__name__}")

    def finish(self, resolve: Callable[[Any], Any]) -> Any:
        raise NotImplementedError


def load(
    stream,
    size: int,
    names: Mapping[tuple[str, str], Name],
    persistent: Callable[[Any], Any] | None = None,
    inert: bool = False,
) -> Any:
    """One pickle from `stream` (read, readline; never asked for more than it has), which stands
    behind it afterwards.

    `size`: bytes of the stream, which bound what builders may take; `inert`: see `Reader`. Raises
    Refused, or whatever a damaged pickle leads to."""
    return _resolved(Reader(stream, names, size, persistent, inert).load())


def _resolved(value: Any) -> Any:
    """`value` with everything Built replaced, each shared part once."""
    done: dict[int, Any] = {}

    def resolve(value):
        kind = type(value)
        if kind not in (dict, list, tuple) and not isinstance(value, Built):
            return value
        if id(value) in done:
            return done[id(value)]
        if kind is dict:
            done[id(value)] = value
            for key in value:
                value[key] = resolve(value[key])
        elif kind is list:
            done[id(value)] = value
            value[:] = map(resolve, value)
        elif kind is tuple:
            done[id(value)] = tuple(map(resolve, value))
            keep.append(value)
        else:
            done[id(value)] = value.finish(resolve)
            keep.append(value)
        return done[id(value)]

    keep: list[Any] = []  # an id must not be used again
    return resolve(value)


def guarded(path: Path, read: Callable[[], Any]) -> Any:
    """`read()`, whose every failure is a ModelFolderError that names the file: hostile data can
    make any step fail.
    """
    try:
        return read()
    except ModelFolderError:
        raise
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path} is missing") from error
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    except Refused as error:
        raise ModelFolderError(f"{path} is refused, and nothing in it was run: {error}") from error
    except Exception as error:  # noqa: BLE001
        empty = (
            isinstance(error, LookupError) or not str(error).strip()
        )  # an unknown opcode or an empty stack: the bare number explains nothing
        said = "its content makes no sense" if empty else " ".join(str(error).split())[:200]
        raise ModelFolderError(f"{path} is damaged or not a file of this kind: {said}") from error


def mapped(file) -> mmap.mmap | io.BytesIO:
    """A file as a stream that never gives more than it has."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # empty
        return io.BytesIO()
