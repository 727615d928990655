"""The ASGI application: the API, the page if it is wanted, and the model that loads meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from caphuman_jax.errors import CapHumanError
from caphuman_jax.studio.api import Api
from caphuman_jax.studio.failures import RequestError, error_response, reason_of
from caphuman_jax.studio.guard import Guard
from caphuman_jax.studio.options import ServerOptions
from caphuman_jax.studio.sessions import Sessions

if TYPE_CHECKING:  # brings JAX, which the page does not wait for
    from caphuman_jax.pipeline.pipeline import Pipeline

log = logging.getLogger("caphuman_jax")

_CLEANING = 30.0  # seconds between looks for sessions that nobody uses
_PACKAGE = Path(str(files("caphuman_jax")))
PAGE, SAMPLE = _PACKAGE / "studio" / "page", _PACKAGE / "assets" / "astronaut_nasa.png"

Load = Callable[[], "tuple[Pipeline, int]"]
"""load() → a pipeline, and how many pictures it makes at a time."""


def create_app(
    options: ServerOptions,
    load: Load,
    folder: Path | None = None,
    warm_up: bool = True,
    failed: Callable[[BaseException], Any] | None = None,
) -> Starlette:
    """The application.

    Args:
        options: limits and secrets.
        load: called in a thread once the server listens.
        folder: where sessions' folders are made; None: in the folder for temporary files.
        warm_up: make a picture first, so that the next one does not wait for a compiler.
        failed: called with the error where the model cannot be loaded.
    """
    sessions = Sessions(options, folder)
    api = Api(options, sessions)

    def start() -> None:
        try:
            from caphuman_jax.studio.engine import Engine  # brings JAX: the page does not wait

            engine = Engine(*load(), options, api.metrics)
            if closing.is_set():
                engine.close()
                return
            api.engine = engine
            if warm_up:
                _warm_up(api)
            api.ready = True
        except BaseException as error:  # noqa: BLE001 - reported by whoever started the server
            log.debug("the model cannot be loaded", exc_info=error)
            if failed is not None:
                failed(error)

    closing = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=start, name="load", daemon=True).start()
        cleaning = asyncio.create_task(_clean(sessions))
        try:
            yield
        finally:
            cleaning.cancel()
            closing.set()
            if api.engine is not None:
                await asyncio.to_thread(api.engine.close)
            sessions.close()

    routes: list[Route | Mount] = [*api.routes()]
    if options.page:
        routes += [
            Route("/", _page),
            Route("/sample.png", _sample),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
    count = lambda route, status: api.metrics.requests.labels(route, str(status)).inc()
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, options=options, count=count)],
        exception_handlers={
            RequestError: _failure,
            HTTPException: _http_failure,
            CapHumanError: _failure,
            Exception: _failure,
        },
    )
    app.state.api = api
    return app


async def _page(_: Request) -> Response:
    return FileResponse(PAGE / "index.html")


async def _sample(_: Request) -> Response:
    return FileResponse(SAMPLE)


async def _failure(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):
        status = 422 if isinstance(error, CapHumanError) else 500
        error = RequestError(status, reason_of(error))
    return error_response(error)


async def _http_failure(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(RequestError(error.status_code, error.detail))


async def _clean(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(_CLEANING)
        await asyncio.to_thread(sessions.end_unused)


def _warm_up(api: Api) -> None:
    """Measure the shipped portrait, then make a picture of it unless another comes first."""
    assert api.engine is not None
    session, ended = api.sessions.create(), threading.Event()
    session.add_upload("warm-up.png", SAMPLE.read_bytes())

    def listen(kind: str, _: dict[str, Any]) -> None:
        if kind in ("done", "failed", "cancelled"):
            ended.set()

    try:
        job = {"reference": "warm-up.png", "prompt": "a photo of a person"}
        request = api.engine.check(job, session)
        api.engine.expect(request)
        api.engine.submit(request, session, listen, idle=True)
        ended.wait()
    finally:
        api.sessions.end(session)
