"""What a server is started with."""

from __future__ import annotations

import dataclasses

from caphuman_jax.errors import SettingError

PORT = 8440


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Limits and secrets of a server.

    Attributes:
        page: whether the web page is served too.
        host: address to listen on.
        api_key: bearer token that every request needs; None: none.
        password: the same for browsers, which ask for it (HTTP Basic, any user name).
        queue: requests that wait or are made at a time; more are answered with 429.
        max_upload: bytes of one request.
        max_pictures: pictures of one request.
        session_seconds: a session that is not used for so long is deleted.
        max_files, max_made: uploads and pictures that a session keeps, the newest ones.
    """

    page: bool = False
    host: str = "127.0.0.1"
    api_key: str | None = None
    password: str | None = None
    queue: int = 32
    max_upload: int = 64 * 2**20
    max_pictures: int = 100
    session_seconds: float = 3600
    max_files: int = 32
    max_made: int = 200

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise SettingError(f"--{name.replace('_', '-')} must be above 0, not {value}")
        for name in ("api_key", "password"):
            if getattr(self, name) == "":
                raise SettingError(f"--{name.replace('_', '-')} must not be empty")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in ("127.0.0.1", "localhost", "::1")
