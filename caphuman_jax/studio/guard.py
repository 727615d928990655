"""What every request passes before it reaches the API: who may ask, from where, and how much."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caphuman_jax.studio.failures import RequestError, error_response
from caphuman_jax.studio.options import ServerOptions

_OPEN = ("/health", "/ready")
_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware.

    Args:
        app: what it guards.
        options: of the server.
        count: (route, status), called with every answer.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, count: Callable[[str, int], None]):
        self._app, self._options, self._count = app, options, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left = self._options.max_upload
        begun = False

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        async def marked(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = _POLICY
                headers.setdefault("Cache-Control", "no-store")
                route = scope.get("route")
                self._count(getattr(route, "path", "other"), message["status"])
            await send(message)

        try:
            self._check(scope["path"], scope["method"], Headers(scope=scope))
            await self._app(scope, limited, marked)
        except RequestError as error:
            if begun:
                raise
            await error_response(error)(scope, receive, marked)

    def _check(self, path: str, method: str, headers: Headers) -> None:
        """Raises RequestError."""
        host = headers.get("host", "")
        if self._options.loopback and _name(host) not in _LOCAL_NAMES:
            # A page of another site that resolves its own name to this machine.
            raise RequestError(421, f"this server answers on this machine only, not for {host!r}")
        origin = headers.get("origin")
        if origin and method not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            raise RequestError(403, f"pages of {origin!r} may not use this server")
        if path not in _OPEN and not self._allowed(headers.get("authorization", "")):
            asks = 'Basic realm="caphuman"' if self._options.password else "Bearer"
            raise RequestError(
                401,
                "the API key or password is missing or wrong",
                headers={"WWW-Authenticate": asks},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._options.max_upload:
            raise self._too_large()

    def _allowed(self, given: str) -> bool:
        key, password = self._options.api_key, self._options.password
        if key is None and password is None:
            return True
        kind, _, secret = given.partition(" ")
        if kind.lower() == "bearer" and key is not None:
            return _same(secret, key)
        if kind.lower() == "basic" and password is not None:
            try:
                secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
            return _same(secret, password)
        return False

    def _too_large(self) -> RequestError:
        most = self._options.max_upload / 2**20
        return RequestError(413, f"the request is larger than {most:,.0f} MB; send smaller photos")


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.strip().encode(), secret.encode())


def _name(host: str) -> str:
    """A host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
