"""Failures of requests: what they are answered with."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import JSONResponse

from caphuman_jax.errors import CapHumanError

_FIELD = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[A-Za-z_]+)*): (.*)", re.DOTALL)


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        problems: a line each, "field: reason" or a reason alone.
        headers: of the answer.
    """

    def __init__(self, status: int, *problems: str, headers: dict[str, str] | None = None):
        super().__init__("; ".join(problems))
        self.status, self.problems, self.headers = status, problems, headers


def error_body(problems: tuple[str, ...]) -> dict[str, Any]:
    """{"error": {"reason", "fields": [{"field", "reason"}, …]}}; a reason that belongs to no field
    has the field null.
    """
    fields = []
    for problem in problems:
        found = _FIELD.fullmatch(problem)
        field, reason = (found[1], found[2]) if found else (None, problem)
        fields.append({"field": field, "reason": reason})
    return {"error": {"reason": "; ".join(problems), "fields": fields}}


def error_response(error: RequestError) -> JSONResponse:
    """The answer to a request that failed."""
    return JSONResponse(error_body(error.problems), error.status, error.headers)


def reason_of(error: BaseException, folder: str = "") -> str:
    """One line about an error, without the path of the session's folder."""
    if isinstance(error, CapHumanError):
        return without_folder(str(error), folder)
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return "the memory does not suffice; ask for a smaller size"
    return f"unexpected {type(error).__name__}; the server's log says more"


def without_folder(text: str, folder: str) -> str:
    """A message in which files of a session's folder have only their names."""
    return re.sub(re.escape(folder) + r"/[0-9a-f]+/", "", text) if folder else text
