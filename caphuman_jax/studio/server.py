"""Running the server until it is stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.studio.app import Load, create_app
from caphuman_jax.studio.options import ServerOptions

_GRACE = 3  # seconds that open requests have once the server is to stop


def serve(options: ServerOptions, port: int, load: Load, announce: Callable[[str], None]) -> None:
    """Listen until Ctrl-C or SIGTERM.

    Args:
        options: limits and secrets.
        port: 0: one that is free.
        load: see `app.create_app`.
        announce: called with the address once the server listens.

    Raises:
        SettingError: the address cannot be listened on.
        CapHumanError: the model cannot be loaded.
    """
    listening = _listen(options.host, port)
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(options, load, failed=failed)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_GRACE,
            server_header=False,
        )
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    announce(f"http://{host}:{listening.getsockname()[1]}")
    server.run(sockets=[listening])
    if failures:
        raise failures[0]


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # some resolvers take the last 16 bits of it
        raise SettingError(f"--port must lie between 0 and 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        return listening
    except OSError as error:
        raise CapHumanError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another with "
            "--host or --port"
        ) from error
