"""The HTTP API: docs/serve.md describes it for users."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import importlib
import json
import secrets
from collections.abc import AsyncIterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from caphuman_jax.studio import answers
from caphuman_jax.studio.bodies import Body, read_body
from caphuman_jax.studio.failures import RequestError, reason_of
from caphuman_jax.studio.metrics import Metrics
from caphuman_jax.studio.options import ServerOptions
from caphuman_jax.studio.sessions import Session, Sessions, StoredFile
from caphuman_jax.version import __version__

if TYPE_CHECKING:  # brings JAX, which the page does not wait for
    from caphuman_jax.studio.engine import Engine, Work

COOKIE, HEADER = "caphuman_session", "x-caphuman-session"


def measures() -> ModuleType:
    """`studio.measures`, which brings JAX: the page does not wait for it."""
    return importlib.import_module("caphuman_jax.studio.measures")


class Api:
    """The routes of a server and what they share.

    Attributes:
        engine: None while the model is loading.
        ready: whether the first picture was made, so that the next one is fast.
        failure: why the model could not be loaded.
    """

    def __init__(self, options: ServerOptions, sessions: Sessions):
        self.options, self.sessions = options, sessions
        waiting = lambda: self.engine.waiting if self.engine else 0
        self.metrics = Metrics(waiting, lambda: len(sessions))
        self.engine: Engine | None = None
        self.ready, self.failure = False, None
        self._works: dict[str, Work] = {}
        self._head_model: bytes | None = None

    def routes(self) -> list[Route]:
        """All routes."""
        return [
            Route("/health", self.health),
            Route("/ready", self.readiness),
            Route("/metrics", self.metric_text),
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route("/v1/head-model", self.head_model),
            Route("/v1/session", self.create_session, methods=["POST"]),
            Route("/v1/session", self.show_session),
            Route("/v1/session", self.end_session, methods=["DELETE"]),
            Route("/v1/photos", self.add_photos, methods=["POST"]),
            Route("/v1/photos/{id}", self.photo),
            Route("/v1/heads", self.heads, methods=["POST"]),
            Route("/v1/images", self.images, methods=["POST"]),
            Route("/v1/images/{id}", self.cancel, methods=["DELETE"]),
            Route("/v1/edits", self.edits, methods=["POST"]),
            Route("/v1/identities", self.identities, methods=["POST"]),
            Route("/v1/pictures/{id}", self.picture),
        ]

    async def health(self, request: Request) -> Response:
        """200 while the process runs."""
        facts = {"status": "ok", "model": self._stage, "version": __version__}
        return JSONResponse(facts)

    async def readiness(self, request: Request) -> Response:
        """200 once the model has made its first picture; 503 before."""
        return JSONResponse({"status": self._stage}, 200 if self.ready else 503)

    async def metric_text(self, request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """This API's description."""

        def document() -> dict[str, Any]:
            from caphuman_jax.studio import openapi  # brings JAX

            return openapi.document()

        return JSONResponse(await to_thread.run_sync(document))

    async def models(self, request: Request) -> Response:
        """The model that is served, and what it is best sampled with."""
        pipe = self._engine().pipe
        config = pipe.config
        best = config.sampling
        model = {
            "name": config.name,
            "image_size": config.image_size,
            "size_step": config.vae.downsampling * 2 ** (len(config.unet.channel_multipliers) - 1),
            "head": config.head,
            "sampling": {
                "sampler": best.sampler,
                "steps": best.steps,
                "guidance_scale": best.guidance_scale,
            },
            "controlnets": list(config.controlnets),
            "weights": pipe.record.get("weights", {}),
        }
        limits = {
            "max_pictures": self.options.max_pictures,
            "max_upload": self.options.max_upload,
        }
        return JSONResponse({"models": [model], "limits": limits, "version": __version__})

    async def head_model(self, request: Request) -> Response:
        """The head model for a viewer, see `head_view.model_view`."""
        if self._head_model is None:
            engine = self._engine()

            def build() -> bytes:
                from caphuman_jax.studio.head_view import model_view  # brings JAX

                return gzip.compress(json.dumps(model_view(engine.pipe.head_model)).encode(), 1)

            self._head_model = await to_thread.run_sync(build)
        tag = f'"{hashlib.sha256(self._head_model).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        headers["Content-Encoding"] = "gzip"
        return Response(self._head_model, media_type="application/json", headers=headers)

    async def create_session(self, request: Request) -> Response:
        """What the client's session keeps; a new session where it has none, also as a cookie."""
        session = self._known_session(request)
        if session is not None:
            return self._with_cookie(_kept(session), session, 200)
        session = self.sessions.create()
        return self._with_cookie(_kept(session), session, 201)

    async def show_session(self, request: Request) -> Response:
        """What the session keeps."""
        return JSONResponse(_kept(self._session(request)))

    async def end_session(self, request: Request) -> Response:
        """Delete the session, its photos and pictures, and cancel its requests."""
        session = self._session(request)
        for work in [one for one in self._works.values() if one.session is session]:
            self._engine().cancel(work)
        await to_thread.run_sync(self.sessions.end, session)
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE)
        return answer

    async def add_photos(self, request: Request) -> Response:
        """Keep photos or identity files for later requests of the session."""
        body = await read_body(request)
        if not body.files:
            raise RequestError(400, "photo: is missing; send it as a file of a form")
        session = self._known_session(request) or self.sessions.create()
        with self.engine.attended() if self.engine else contextlib.nullcontext():
            stored = await self._store_all(session, body)
        photos = [{"id": one.id, **one.facts} for one in stored]
        return self._with_cookie({"photos": photos}, session, 201)

    async def photo(self, request: Request) -> Response:
        """An upload as a JPEG for a browser: upright, in sRGB and not too large."""
        found = self._session(request).uploads.get(request.path_params["id"])
        if found is None or "width" not in found.facts:
            raise RequestError(404, "there is no such photo in this session")
        return Response(
            await to_thread.run_sync(measures().preview, found), media_type="image/jpeg"
        )

    async def heads(self, request: Request) -> Response:
        """The faces of a photo, and the head of one of them."""
        async with self._job(request) as (session, fields, stored):
            engine = self._engine()
            unknown = set(fields) - {"photo", "face"}
            if unknown:
                raise RequestError(400, *(f"{name}: there is no such field" for name in unknown))
            if stored:
                upload = stored[0]
            else:
                named = fields.get("photo")
                if not isinstance(named, str):
                    raise RequestError(400, "photo: is missing; send a file, or name an upload")
                problem, path = session.find(named, session.folder)
                if problem:
                    raise RequestError(400, f"photo: {problem}")
                upload = next(o for o in session.uploads.values() if str(o.path) == path)
            face = fields.get("face")
            if face is not None and (not isinstance(face, int) or isinstance(face, bool)):
                raise RequestError(400, f"face: must be a number, 0 the largest, not {face!r}")
            with engine.attended():
                view = await to_thread.run_sync(measures().head_of, engine, session, upload, face)
            return JSONResponse({"photo": {"id": upload.id, **upload.facts}, **view})

    async def images(self, request: Request) -> Response:
        """The pictures of a job: as JSON, as a stream of events, or as one PNG file."""
        return await self._make(request)

    async def edits(self, request: Request) -> Response:
        """The same, for a job that changes a photo."""
        return await self._make(request, edit=True)

    async def cancel(self, request: Request) -> Response:
        """Make nothing more of a request."""
        work = self._works.get(request.path_params["id"])
        if work is None:
            raise RequestError(404, "there is no such request; it has ended")
        self._engine().cancel(work)
        return Response(status_code=204)

    async def identities(self, request: Request) -> Response:
        """An identity file of one or several photos of a person."""
        async with self._job(request) as (session, fields, stored):
            engine = self._engine()
            named = fields.pop("reference", [one.id for one in stored])
            fields = {"prompt": "", **fields, "reference": named}
            checked = await to_thread.run_sync(engine.check, fields, session)
            data = await to_thread.run_sync(measures().identity, engine, session, checked)
            headers = {"Content-Disposition": 'attachment; filename="person.identity"'}
            return Response(data, media_type="application/octet-stream", headers=headers)

    async def picture(self, request: Request) -> Response:
        """A picture of the session: its PNG file, with the settings in it."""
        found = self._session(request).pictures.get(request.path_params["id"])
        if found is None:
            raise RequestError(404, "there is no such picture in this session")
        data = await to_thread.run_sync(found.path.read_bytes)
        how = "attachment" if "download" in request.query_params else "inline"
        headers = {
            "Content-Disposition": f'{how}; filename="{found.path.name}"',
            "Cache-Control": "private, max-age=3600, immutable",
        }
        return Response(data, media_type="image/png", headers=headers)

    @property
    def _stage(self) -> str:
        return "ready" if self.ready else "warming up" if self.engine else "loading"

    def _engine(self) -> Engine:
        """Raises RequestError while the model is loading."""
        if self.engine is None:
            raise RequestError(503, "the model is still loading", headers={"Retry-After": "2"})
        return self.engine

    def _known_session(self, request: Request) -> Session | None:
        named = request.headers.get(HEADER) or request.cookies.get(COOKIE)
        return self.sessions.get(named)

    def _session(self, request: Request) -> Session:
        session = self._known_session(request)
        if session is None:
            raise RequestError(404, "there is no such session, or it has ended")
        return session

    def _with_cookie(self, body: dict[str, Any], session: Session, status: int) -> Response:
        answer = JSONResponse({"session": session.id, **body}, status)
        answer.set_cookie(COOKIE, session.id, httponly=True, samesite="strict")
        return answer

    @contextlib.asynccontextmanager
    async def _job(
        self, request: Request
    ) -> AsyncIterator[tuple[Session, dict[str, Any], list[StoredFile]]]:
        """The session, fields and stored files of a request. Without a session of its own it has
        one that ends with it.
        """
        body = await read_body(request)
        known = self._known_session(request)
        session = known or self.sessions.create()
        try:
            yield session, body.fields, await self._store_all(session, body)
        finally:
            if known is None:
                self.sessions.end(session)

    async def _store_all(self, session: Session, body: Body) -> list[StoredFile]:
        return [await self._store(session, *file) for file in body.files]

    async def _store(self, session: Session, field: str, name: str, data: bytes) -> StoredFile:
        try:
            return await to_thread.run_sync(measures().store, session, field, name, data)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises
            reason = reason_of(error).replace("the photo", name, 1)
            raise RequestError(422, f"photo: {reason}") from error

    async def _make(self, request: Request, edit: bool = False) -> Response:
        """Answer a job. The session of a request without one ends with its answer."""
        engine, body = self._engine(), await read_body(request)
        known = self._known_session(request)
        session = known or self.sessions.create()
        end = lambda: None if known else self.sessions.end(session)
        try:
            await self._store_all(session, body)
            fields = dict(body.fields)
            if "product" in fields:
                raise RequestError(400, "product: send a request for each combination")
            if edit and not isinstance(fields.get("edit"), dict):
                raise RequestError(400, "edit: is missing; it names the photo that is changed")
            job_id = fields.pop("id", None)
            checked = await to_thread.run_sync(engine.check, fields, session)
            events: asyncio.Queue = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def post(kind: str, facts: dict[str, Any]) -> None:
                with contextlib.suppress(RuntimeError):  # the server has stopped
                    loop.call_soon_threadsafe(events.put_nowait, (kind, facts))

            waiting = engine.waiting
            work = engine.submit(checked, session, post)
        except BaseException:
            end()
            raise
        work_id = secrets.token_urlsafe(12)
        self._works[work_id] = work
        accepted = {"id": work_id, "job": job_id, "waiting": waiting, "pictures": work.left}

        def close() -> None:
            self._works.pop(work_id, None)
            engine.cancel(work)
            end()

        kept = session if known else None
        accepts = request.headers.get("accept", "")
        if "text/event-stream" in accepts:
            return answers.EventStream(answers.stream(accepted, events, kept), close)
        try:
            return await answers.answer(request, accepted, events, kept, "image/png" in accepts)
        finally:
            close()


def _kept(session: Session) -> dict[str, Any]:
    pictures = [answers.picture_facts(one) for one in list(session.pictures.values())]
    photos = [{"id": one.id, **one.facts} for one in list(session.uploads.values())]
    return {"photos": photos, "pictures": pictures}
