"""`caphuman config show`: a configuration as `caphuman train` will use it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman config`; `--config.NAME=VALUE` overrides an entry."""
    parser.add_argument("action", choices=("show",), help="show: print every entry")
    parser.add_argument(
        "name",
        metavar="NAME|FILE.py",
        help="name of a file in configs/ (without .py), or the path of your own",
    )
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices of all hosts; default 1"
    )
    parser.add_argument(
        "--platform", choices=("cpu", "gpu", "tpu"), default="gpu", help="default gpu"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--override",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another way to write --config.NAME=VALUE",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the configuration, its batch, and the memory of its state."""
    # Shapes alone are computed, on as many simulated devices as are asked for.
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = f"--xla_force_host_platform_device_count={max(args.devices, 1)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    from caphuman_jax.training import describe

    config, entries = describe.entries(args.name, args.overrides, args.platform)
    memory = describe.memory(config, args.platform)
    batch = config.training.get("batch_size")
    if args.json:
        content = {
            "entries": [dataclasses.asdict(entry) for entry in entries],
            "batch_size": batch,
            "devices": args.devices,
            "memory": None if memory is None else dataclasses.asdict(memory),
        }
        print(json.dumps(content, indent=1, default=str))
        return 0
    names = [f"{entry.name} = {entry.value!r}" for entry in entries]
    width = min(max(map(len, names), default=0), 60)
    for text, entry in zip(names, entries):
        print(f"{text:<{width}}  # {entry.source}")
    print()
    if batch:
        parts = config.training.get("accumulate", 1)
        line = f"batch: {batch} pictures a step, {batch / args.devices:g} on each of {args.devices}"
        print(line + (f", in {parts} parts" if parts > 1 else ""))
    if memory is None:
        print("memory: this recipe says it only with its data")
        return 0
    show = lambda sizes: ", ".join(f"{part} {_gib(size)}" for part, size in sizes.items() if size)
    print(f"state: {_gib(sum(memory.whole.values()))} ({show(memory.whole)})")
    on_one = f"{_gib(sum(memory.device.values()))} ({show(memory.device)})"
    print(f"on one device, {config.loop.sharding}: {on_one}")
    print(f"one checkpoint: {_gib(memory.checkpoint)}; {config.loop.keep} are kept")
    print(
        "activations and gradients are in addition: "
        f"caphuman compile --config {args.name} --topology …"
    )
    return 0


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
