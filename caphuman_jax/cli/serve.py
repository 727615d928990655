"""`caphuman serve`: the HTTP API."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from caphuman_jax.cli import console, sampling_arguments
from caphuman_jax.cli.argument_types import positive_int
from caphuman_jax.errors import CapHumanError

_NEEDED = ("starlette", "uvicorn", "multipart", "python_multipart", "prometheus_client")
_SECRETS = {"api_key": "CAPHUMAN_API_KEY", "password": "CAPHUMAN_PASSWORD"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman serve`."""
    add_server_arguments(parser)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that starts a server."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on, default 127.0.0.1: this machine only",
    )
    server.add_argument(
        "--port", type=int, default=8440, metavar="N", help="default 8440; 0: any free port"
    )
    server.add_argument(
        "--api-key",
        metavar="KEY",
        help="bearer token that requests must send; safer in the variable CAPHUMAN_API_KEY",
    )
    server.add_argument(
        "--password",
        metavar="TEXT",
        help="password that browsers ask for; safer in the variable CAPHUMAN_PASSWORD",
    )
    server.add_argument(
        "--queue",
        type=positive_int,
        default=32,
        metavar="N",
        help="requests that may wait or run at the same time, default 32; more get status 429",
    )
    server.add_argument(
        "--max-upload",
        type=positive_int,
        default=64,
        metavar="MB",
        help="largest request, default 64",
    )
    server.add_argument(
        "--max-pictures",
        type=positive_int,
        default=100,
        metavar="N",
        help="most pictures of one request, default 100",
    )
    batch = (
        "pictures at a time on each device; default: 1 on a CPU or with --memory low or least, "
        "else 8"
    )
    sampling_arguments.add_model_arguments(parser.add_argument_group("model"), batch)


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises CapHumanError."""
    serve(args, page=False)


def serve(
    args: argparse.Namespace, page: bool, then: Callable[[str], object] | None = None
) -> None:
    """Serve the API, and with `page` the studio's page.

    Args:
        args: as of `add_server_arguments`.
        page: whether the page is served too.
        then: called with the address once the server listens.

    Raises:
        CapHumanError: wrong arguments, packages that are missing, or a model that cannot be loaded.
    """
    console.quiet_libraries()
    console.check_batch(args.batch)
    try:
        # They are of the extra `studio`, and bring more than `--help` needs.
        from caphuman_jax.studio.options import ServerOptions
        from caphuman_jax.studio.server import serve as run_server
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise CapHumanError(
            f"the package {error.name} is missing; pip install '.[studio]' brings it"
        ) from error
    api_key, password = (
        getattr(args, name) if getattr(args, name) is not None else os.environ.get(variable)
        for name, variable in _SECRETS.items()
    )
    sampling_arguments.check_files(args)
    options = ServerOptions(
        page=page,
        host=args.host,
        queue=args.queue,
        max_upload=args.max_upload * 2**20,
        max_pictures=args.max_pictures,
        api_key=api_key,
        password=password,
    )

    def load():
        from caphuman_jax.jobs import multi_device  # its programs are not needed for --help

        pipe, batch = multi_device.load(
            args.model, dtype=args.dtype, batch=args.batch, memory=args.memory
        )
        sampling_arguments.use_files(pipe, args)
        return pipe, batch

    def announced(address: str) -> None:
        print(f"{'caphuman studio' if page else 'caphuman serve'}: {address}", flush=True)
        if not options.loopback and not (api_key or password):
            print(
                "caphuman: notice: everyone who reaches this address can use the server; set "
                "--password or --api-key",
                file=sys.stderr,
            )
        if then is not None:
            then(address)

    run_server(options, args.port, load, announced)
