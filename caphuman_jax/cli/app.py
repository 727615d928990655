"""The command `caphuman`: finds the chosen verb's module and runs it.

Only what that verb needs is imported, so that help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

from caphuman_jax.cli import argument_types, failures
from caphuman_jax.errors import INTERRUPTED, RESTART, CapHumanError, Terminated
from caphuman_jax.io import files
from caphuman_jax.runtime import distributed
from caphuman_jax.runtime.platforms import spare_libtpu
from caphuman_jax.version import __version__

_VERBS = {
    "generate": ("caphuman_jax.cli.generate", "make pictures of the person in a photo"),
    "edit": (
        "caphuman_jax.cli.edit",
        "change the head in a photo, or put another person's face into it",
    ),
    "head": (
        "caphuman_jax.cli.head",
        "fit, edit and show heads: numbers, hints, turntable, mesh, sequences",
    ),
    "identity": (
        "caphuman_jax.cli.identity",
        "write an identity file, which replaces the photos of a person",
    ),
    "sample": (
        "caphuman_jax.cli.sample",
        "make the pictures of a file of jobs, on all devices and any number of machines",
    ),
    "serve": ("caphuman_jax.cli.serve", "serve pictures, edits and heads over HTTP"),
    "studio": (
        "caphuman_jax.cli.studio",
        "open a page in the browser: turn a head with the mouse, make pictures, edit photos",
    ),
    "evaluate": (
        "caphuman_jax.cli.evaluate",
        "measure a model on photos: face found, identity, pose, expression",
    ),
    "compare": (
        "caphuman_jax.cli.compare",
        "compare runs of evaluate: differences with intervals, and a verdict in words",
    ),
    "import": (
        "caphuman_jax.cli.import_weights",
        "convert weight files (caphuman.ckpt, SD1.5, VAE, LoRA …) to a model folder",
    ),
    "check": (
        "caphuman_jax.cli.check",
        "report what a model folder can do, what it lacks, and whether its files are intact",
    ),
    "export": ("caphuman_jax.cli.export", "convert a model folder to files for PyTorch programs"),
    "prepare": ("caphuman_jax.cli.prepare", "convert photos to records for training"),
    "inspect": (
        "caphuman_jax.cli.inspect",
        "check records and show their contents: counts, histograms, a contact sheet",
    ),
    "train": ("caphuman_jax.cli.train", "train a model"),
    "launch": (
        "caphuman_jax.cli.launch",
        "start, follow, stop and resume a command on this machine, Slurm, GKE, TPU VMs or Docker",
    ),
    "status": (
        "caphuman_jax.cli.status",
        "show how a training run is doing: step, rate, hosts, checkpoints, restarts, goodput",
    ),
    "config": (
        "caphuman_jax.cli.config",
        "show a configuration: every entry and its origin, batch per device, memory of the state",
    ),
    "doctor": (
        "caphuman_jax.cli.doctor",
        "check this machine: devices, versions, disk, clock, connections, buckets, one face",
    ),
    "compile": (
        "caphuman_jax.cli.compile",
        "compile training and sampling for hardware that you do not have: memory, speed limits",
    ),
}
"""Each verb's module, with add_arguments(parser) and run(args), and its line in the help."""
_NEEDS_POSIX = ("sample", "serve", "studio", "evaluate", "prepare", "train", "launch")
"""Verbs that lock files, or signal groups of processes, as only POSIX systems do."""
_PLACE = re.compile(r"PHOTO|PICTURE|FILE|FOLDER|DIR|PATH|SRC|OUT|MODEL|ADDRESS")
"""In the names of arguments that are a path or an address."""
_FAILED = 2
_AGAIN = 0.02  # seconds after which a signal is sent again


class _Parser(argparse.ArgumentParser):
    """Reports what is wrong in one line, also that its help cannot be written."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.register("type", int, argument_types.integer)

    def _print_message(self, message, file=None):
        if message:
            (file or sys.stderr).write(message)

    def parse_known_args(self, args=None, namespace=None):
        for text in args or []:
            if text == "--":
                break
            if text.startswith("--") and text.endswith("=--"):  # Python 3.11 makes [] of it
                self.error(f"{text}: -- is not a value")
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, arg_string):
        # An empty path would be the current directory, an empty address every interface. Defaults
        # come here too.
        if (
            arg_string != action.default
            and not arg_string.strip()
            and _PLACE.search(str(action.metavar or action.dest).upper())
        ):
            raise argparse.ArgumentError(action, "must not be empty")
        return super()._get_value(action, arg_string)

    def error(self, message):
        self.exit(_FAILED, f"caphuman: error: {message}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see `run` for the exit codes."""
    code = run(arguments)
    distributed.leave(code)
    return code


def run(arguments: list[str] | None = None) -> int:
    """Run the command, and report what went wrong.

    Returns:
        The exit code: 0; 2 for an error, 70 for one that was not expected, 130 after Ctrl-C and 75
        after SIGTERM, each reported in one line; and those of train and sample.
        docs/reliability.md lists them. With --debug, errors are raised.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [a for i, a in enumerate(arguments) if i >= end or a != "--debug"]
    failures.plain_output()
    spare_libtpu()
    try:
        with _sigterm_raised(), _threads_reported(debug):
            code = _dispatch(arguments) or 0
        problem = failures.flush(sys.stdout)
        return code if problem is None else _failed(f"the output cannot be written: {problem}")
    except CapHumanError as error:
        if debug:
            raise
        return _failed(str(error))
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        why = "terminated" if terminated else "interrupted"
        print(f"\ncaphuman: {'; '.join(filter(None, (why, str(stop))))}", file=sys.stderr)
        return RESTART if terminated else INTERRUPTED
    except SystemExit:
        problem = failures.flush(sys.stdout)
        if problem is not None:
            return _failed(f"the output cannot be written: {problem}")
        raise
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # the reader of our output has closed it
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        told = failures.explain(error, arguments[0] if arguments else "")
        if told is not None:
            return _failed(told)
        return _failed(failures.unexpected(error), failures.UNEXPECTED)


def _failed(text: str, code: int = _FAILED) -> int:
    # What a file says may be part of the message: no control characters reach the terminal.
    print(f"caphuman: error: {files.printable(' '.join(text.split()))}", file=sys.stderr)
    failures.flush(sys.stdout)
    return code


@contextlib.contextmanager
def _sigterm_raised() -> Iterator[None]:
    """SIGTERM raises Terminated; where something is saved, `runtime.preemption` handles it.

    An exception that a signal raises while Python runs a finalizer or a callback of its garbage
    collector is lost there. The signal is sent again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminated(*_):
        raise Terminated

    def lost(unraisable):
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)
            return
        stopped = isinstance(unraisable.exc_value, Terminated)
        number = signal.SIGTERM if stopped else signal.SIGINT
        again = threading.Timer(_AGAIN, signal.pthread_kill, (threading.get_ident(), number))
        again.daemon = True
        again.start()

    before = signal.signal(signal.SIGTERM, terminated)
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _threads_reported(debug: bool) -> Iterator[None]:
    """A full disk that a library finds in a thread of its own is one line, too, and what follows
    from an error that was reported is not shown.
    """
    hook, hook_of_callbacks = threading.excepthook, sys.unraisablehook

    def report(failure):
        found = failure.exc_value
        told = failures.explain(found) if isinstance(found, OSError) else None
        if debug or told is None:
            hook(failure)
        else:
            print(f"caphuman: warning: {told}", file=sys.stderr)

    def report_of_callbacks(failure):
        # When a checkpoint cannot be written, Orbax raises and closes its event loop, to which the
        # writes that are left still report in TensorStore's threads.
        if debug or str(failure.exc_value) != "Event loop is closed":
            hook_of_callbacks(failure)

    threading.excepthook, sys.unraisablehook = report, report_of_callbacks
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hook, hook_of_callbacks


def _dispatch(arguments: list[str]) -> int | None:
    if arguments and arguments[0] in _NEEDS_POSIX and sys.platform == "win32":
        raise CapHumanError(
            f"caphuman {arguments[0]} needs Linux or macOS; on Windows, run it in WSL 2"
        )
    parser, verb = _parser(arguments[0] if arguments else None)
    if not arguments:
        parser.print_help()
        return None
    args, unknown = parser.parse_known_args(_joined(arguments))
    if unknown:
        verb.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args.run(args)


def _parser(chosen: str | None) -> tuple[_Parser, _Parser]:
    """The command's parser and the chosen verb's, which alone has its arguments."""
    parser = verb = _Parser(
        prog="caphuman",
        description="Make pictures of a person from a photo of the face, a prompt and a head.",
    )
    parser.add_argument("--version", action="version", version=f"caphuman {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, text) in _VERBS.items():
        command = commands.add_parser(name, help=text)
        if name == chosen:
            verb, module = command, importlib.import_module(module)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser, verb


def _joined(arguments):
    """Rewrite `--light -1,0,0,1` as `--light=-1,0,0,1` and `--config.NAME=VALUE` as
    `--override=NAME=VALUE`; argparse would misread both.
    """
    joined = []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:end]:
        if argument.startswith("--config."):
            argument = "--override=" + argument.removeprefix("--config.")
        if (
            joined
            and joined[-1] in ("--light", "--position", "--expression")
            and argument[:1] == "-"
            and argument[1:2] in set("0123456789.")
        ):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined + arguments[end:]


if __name__ == "__main__":
    sys.exit(main())
