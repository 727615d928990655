"""The last net under the command: every failure becomes one line, and output never fails for its
characters.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
import unicodedata
from typing import TextIO

UNEXPECTED = 70
"""Exit code of an error that no verb explains: probably a fault of this program."""
_PLAIN = {
    "…": "...",
    "×": "x",
    "²": "^2",
    "·": "*",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "–": "-",
    "—": "-",
    "’": "'",
}
_HANDLER = "caphuman_plain"
_LESS_MEMORY = {
    "train": "take a smaller training.batch_size, more training.accumulate, training.remat=blocks "
    "or loop.sharding=zero",
    "prepare": "take fewer --workers",
    "compile": "take a smaller --batch",
    "evaluate": "take a smaller --batch",
    "head": "take a smaller --size",
}
_MEMORY_ELSEWHERE = "end other programs, or let the CPU compute: JAX_PLATFORMS=cpu"
_SAMPLING = ("generate", "edit", "sample", "serve", "studio")


def explain(error: BaseException, verb: str = "") -> str | None:
    """What happened and what to do, for failures of the machine; None for any other error. `verb`:
    the command, whose settings are named.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, OSError) and "No space left on device" in text:  # of C++ libraries
        return f"no space is left ({text[:200]}); make room, and run the same command again"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        sampling = "take a smaller --batch, or --memory low"
        advice = sampling if verb in _SAMPLING else _LESS_MEMORY.get(verb, _MEMORY_ELSEWHERE)
        return f"the memory does not suffice; {advice}"
    if "Unable to initialize backend" in text or "Unknown backend" in text or _no_backend(error):
        platforms = os.environ.get("JAX_PLATFORMS")
        named = f" JAX_PLATFORMS={platforms}" if platforms else " this machine's accelerator"
        reason = text[:200] or "there is no such device"
        return f"JAX cannot use{named} ({reason}); unset JAX_PLATFORMS, or set it to cpu"
    if isinstance(error, ModuleNotFoundError) and error.name in ("fcntl", "resource"):
        return "this needs Linux or macOS; on Windows, use WSL 2"
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read"
    if isinstance(error, UnicodeError):
        return f"a name or text is not UTF-8 ({text[:200]})"
    if isinstance(error, OSError):
        place = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{place}no space is left; make room, and run the same command again"
        return f"{place}{error.strerror or text or type(error).__name__}"
    return None


def _no_backend(error: BaseException) -> bool:
    """Whether JAX found none of the devices that JAX_PLATFORMS names, of which it says nothing:
    where no platform can be used, it fails an assertion.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    inside = frame is not None and "xla_bridge" in frame.tb_frame.f_code.co_filename
    return isinstance(error, AssertionError) and inside


def unexpected(error: BaseException) -> str:
    """One line for an error that nothing explains."""
    text = " ".join(str(error).split())[:300]
    return (
        f"unexpected {type(error).__name__}: {text}; add --debug to see where, and please report it"
    )


def plain_output() -> None:
    """Let stdout and stderr write any text: characters that they lack become plain ones. What is
    written to a stream that was closed before the start is discarded.
    """
    _fill_closed_descriptors()
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors=_HANDLER)  # pyrefly: ignore[missing-attribute]


def _fill_closed_descriptors() -> None:
    """Otherwise a picture could be opened as descriptor 2, and libraries would print into it."""
    streams = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
    closed = [(name, mode) for name, mode in streams if getattr(sys, name) is None]
    if not closed:
        return
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    for name, mode in closed:
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def flush(stream: TextIO) -> OSError | None:
    """Write what is buffered. An error is returned, and nothing more is written at the exit."""
    try:
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Otherwise Python reports the same again when it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):  # of what reads a stream's file back, as tests do
        text, end = codecs.backslashreplace_errors(error)
        return str(text), end
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    parts = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return parts or character.encode("ascii", "backslashreplace").decode()
