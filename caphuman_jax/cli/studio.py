"""`caphuman studio`: the web page, and the HTTP API that it uses."""

from __future__ import annotations

import argparse
import os
import sys

from caphuman_jax.cli import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman studio`."""
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    serve.add_server_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Raises CapHumanError."""
    serve.serve(args, page=True, then=lambda address: None if args.no_browser else _open(address))


def _open(address: str) -> None:
    """Open a browser where there is a desktop."""
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop or sys.platform in ("darwin", "win32"):
        import webbrowser  # not needed otherwise

        webbrowser.open(address)
