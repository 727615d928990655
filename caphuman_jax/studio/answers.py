"""Answers to jobs: events as they come, all pictures as JSON, or one PNG file."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from caphuman_jax.studio.failures import RequestError, error_body
from caphuman_jax.studio.sessions import Session, StoredFile

_POLL = 0.3  # seconds between looks whether a client is still there


class EventStream(StreamingResponse):
    """A stream of server-sent events; `close` is called when it ends or its client leaves."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def stream(
    accepted: dict[str, Any], events: asyncio.Queue, kept: Session | None
) -> AsyncIterator[str]:
    """Events of a request as they come; `kept`: the session that keeps its pictures."""
    yield _event("accepted", accepted)
    kind = ""
    while kind not in ("done", "failed", "cancelled"):
        kind, facts = await events.get()
        if kind == "picture":
            facts = await to_thread.run_sync(_shown, facts, kept, kept is None)
        elif kind == "failed":
            facts = {"status": facts["status"], **error_body((facts["reason"],))}
        yield _event(kind, facts)


async def answer(
    request: Request,
    accepted: dict[str, Any],
    events: asyncio.Queue,
    kept: Session | None,
    png: bool,
) -> Response:
    """All pictures in one answer. Raises RequestError."""
    pictures: list[dict[str, Any]] = []
    while True:
        try:
            kind, facts = await asyncio.wait_for(events.get(), _POLL)
        except TimeoutError:
            if await request.is_disconnected():
                raise RequestError(499, "the client has left") from None
            continue
        if kind == "picture":
            if png:
                return Response(facts["png"], media_type="image/png")
            pictures.append(await to_thread.run_sync(_shown, facts, kept, True))
        elif kind == "failed":
            raise RequestError(facts["status"], facts["reason"])
        elif kind == "cancelled":
            raise RequestError(409, "the request was cancelled")
        elif kind == "done":
            pictures.sort(key=lambda one: one["number"])
            return JSONResponse({**accepted, "pictures": pictures, **facts})


def _event(kind: str, facts: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(facts, ensure_ascii=False)}\n\n"


def _shown(facts: dict[str, Any], kept: Session | None, with_png: bool) -> dict[str, Any]:
    """A picture as it is answered; the session keeps it."""
    settings, png = facts["settings"], facts["png"]
    shown = {"number": facts["number"], "settings": settings}
    if kept is not None:
        name = f"picture_{settings['seed']}_{facts['number']:02d}.png"
        stored = kept.add_picture(name, png, shown)
        shown = picture_facts(stored)
    return shown | ({"png": base64.b64encode(png).decode()} if with_png else {})


def picture_facts(stored: StoredFile) -> dict[str, Any]:
    """A kept picture as JSON types."""
    url = f"/v1/pictures/{stored.id}"
    return {"id": stored.id, "name": stored.path.name, "url": url, **stored.facts}
