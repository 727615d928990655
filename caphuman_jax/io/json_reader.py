"""One reader of JSON from anywhere, with limits: size, depth, digits, valid text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

from caphuman_jax.io.files import read_regular

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 100
"""Levels of brackets. What reads the values is recursive too, so this is well below its limit."""
MAX_DIGITS = 100

# One that never ends takes the rest, so that the time stays linear.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(r"\\[uU][dD][89a-fA-F]")


class JsonError(ValueError):
    """What is wrong with a text that should be JSON."""


def parse(text: str | bytes, pairs_hook: Callable | None = None) -> Any:
    """The value of a JSON text. A byte-order mark is skipped.

    Args:
        text: bytes are UTF-8.
        pairs_hook: see `json.loads`'s `object_pairs_hook`.

    Raises:
        JsonError: it is not JSON or not UTF-8, is nested deeper than MAX_DEPTH, has a whole number
            of more than MAX_DIGITS digits, or text with half a surrogate pair.
    """
    try:
        if not isinstance(text, str):
            text = bytes(text).decode("utf-8-sig")
        text = text.removeprefix("\ufeff")
        _check_depth(text)
        if pairs_hook is None:
            value = _DECODER.decode(text)
        else:
            value = json.loads(text, object_pairs_hook=pairs_hook, parse_int=_whole)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise JsonError("it holds half of a character (a lone surrogate)") from error
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise JsonError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise JsonError(str(error)) from error
    return value


def read(path: str | os.PathLike, limit: int = MAX_BYTES) -> Any:
    """The value in a local JSON file.

    Raises:
        OSError: it cannot be read, is not a regular file or has more than `limit` bytes.
        JsonError: see `parse`.
    """
    return parse(read_regular(path, limit))


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise JsonError(f"it is nested more than {MAX_DEPTH} levels deep")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"it holds a number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_whole)
