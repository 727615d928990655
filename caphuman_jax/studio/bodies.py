"""What requests bring: JSON, or a form with a job and files."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from caphuman_jax.io import json_reader
from caphuman_jax.studio.failures import RequestError

_LONGEST_JSON = 2 * 2**20
_MOST_FILES, _MOST_FIELDS = 16, 16


@dataclasses.dataclass(frozen=True)
class Body:
    """Fields of a request, and (field, file name, content) of its files."""

    fields: dict[str, Any]
    files: list[tuple[str, str, bytes]]


async def read_body(request: Request) -> Body:
    """The body of a request: a JSON object; or a form, whose field `job` is such an object and
    whose other texts are fields.

    Raises:
        RequestError: 400 for anything else, 413 where it is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request)
    if kind not in ("application/json", ""):
        raise RequestError(415, "send JSON (application/json) or a form (multipart/form-data)")
    data = await request.body()
    if len(data) > _LONGEST_JSON:
        raise RequestError(413, "the JSON is too long; send photos as files of a form")
    return Body(_object(data, "the body"), [])


async def _form(request: Request) -> Body:
    fields: dict[str, Any] = {}
    files = []
    try:
        async with request.form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_JSON
        ) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.append((name, value.filename or name, await value.read()))
                elif name == "job":
                    fields |= _object(value, "job")
                else:
                    fields[name] = _value(value)
    except MultiPartException as error:
        raise RequestError(400, f"the form cannot be read: {error.message}") from error
    return Body(fields, files)


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json_reader.parse(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{what} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(400, f"{what} must be a JSON object, such as {{}}")
    return value


def _value(text: str) -> Any:
    """A form's text as a number where it is one."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text
