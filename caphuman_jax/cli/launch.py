"""`caphuman launch`: a command on one machine or many, from one place."""

from __future__ import annotations

import argparse
from pathlib import Path

from caphuman_jax.errors import SettingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman launch`."""
    from caphuman_jax.launch import job

    parser.add_argument(
        "--file",
        type=Path,
        metavar="JOB.yaml",
        help="YAML file whose entries have the names of the flags, and `command`, a list of words",
    )
    what = parser.add_argument_group("what to do; default: start").add_mutually_exclusive_group()
    for action, text in (
        ("follow", "show the job's log"),
        ("stop", "let the job save its state, then end it"),
        ("resume", "start the job again; training resumes from its last checkpoint"),
    ):
        what.add_argument(
            f"--{action}", dest="action", action="store_const", const=action, help=text
        )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--run", dest="execute", action="store_true", help="run the commands of a cluster"
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be run; the default for clusters, not for local",
    )
    where = parser.add_argument_group("job")
    for name, (kind, _, text) in job.fields().items():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            where.add_argument(flag, action="store_true", default=None, help=text)
        elif name in ("env", "wrap"):
            where.add_argument(flag, action="append", metavar="NAME=VALUE", help=text)
        else:
            where.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=text)
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND …",
        help="train, sample, evaluate, prepare or doctor with its arguments",
    )


def run(args: argparse.Namespace) -> int:
    """Prints or runs.

    Returns:
        The exit code: the job's own (local), or that of the platform's program.
    """
    from caphuman_jax.launch import clusters, job, local, resumed_base, room

    flags = {name: getattr(args, name) for name in job.fields()}
    for name in ("env", "wrap"):
        flags[name] = None if flags[name] is None else dict(map(_pair, flags[name]))
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    action = args.action or "start"
    found = job.make_job(args.file, flags, command, needs_command=action in ("start", "resume"))
    if found.on == "local":
        if args.dry_run:
            print(*local.shown(found), sep="\n")
            return 0
        return {"follow": local.follow, "stop": local.stop}.get(action, local.start)(found)
    commands = clusters.plan(found, action)
    if not args.execute:
        print(*(one.shown() for one in commands), sep="\n")
        return 0
    if found.on == "docker" and found.nodes > 1 and action != "follow":
        raise SettingError("with several nodes, run each printed command on its own machine")
    if action in ("start", "resume"):
        resumed_base.check(found)
        room.check(found)
    return clusters.run(commands)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise SettingError(f"{text}: write NAME=VALUE")
    return name, value
