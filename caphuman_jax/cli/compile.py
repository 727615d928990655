"""`caphuman compile`: the real training step and the real sampler, compiled for TPU slices and GPUs
that are not at hand or for the devices that are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from caphuman_jax.errors import SettingError
from caphuman_jax.io import atomic, json_reader
from caphuman_jax.runtime.versions import versions


def add_arguments(parser) -> None:
    """The command's options; `--config.NAME=VALUE` overrides an entry of the configuration."""
    parser.add_argument(
        "--config",
        default="sd15",
        metavar="NAME|FILE.py",
        help="name of a file in configs/ (without .py), or the path of your own; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--topology",
        nargs="+",
        default=["local"],
        metavar="SLICE",
        help="local, TPU slices such as v5e:4x4 v5p:2x2x1 v6e:16x16, or GPUs such as h100 "
        "a100-80:8",
    )
    parser.add_argument(
        "--what",
        nargs="+",
        choices=("train", "sample"),
        default=["train"],
        help="train: the training step (default); sample: the sampler with its decoder",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        default=None,
        metavar="N",
        help=(
            "pictures per device, or auto for the largest number that fits; default: the "
            "configuration's batch over all devices (sample: 1)"
        ),
    )
    parser.add_argument(
        "--steps", type=int, default=None, help="steps of the sampler; default: the model's own"
    )
    parser.add_argument(
        "--effort",
        type=float,
        default=None,
        metavar="E",
        help="how hard the compiler tries, -1 to 1; default: its own, 0",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the compiler, such as xla_tpu_…=…; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=(
            "also write the results to this file: .json, or a table with any other ending; "
            "its other rows are kept"
        ),
    )
    parser.add_argument(
        "--override",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another way to write --config.NAME=VALUE, for example --config.loop.sharding=zero "
        "--config.training.remat=blocks",
    )


def run(args) -> None:
    """Compiles, prints and writes."""
    if args.topology != ["local"]:
        os.environ.setdefault(
            "JAX_PLATFORMS", "cpu"
        )  # no accelerator is looked for on this machine
    from caphuman_jax.aot import compile
    from caphuman_jax.training.run_config import read_config

    read_config(args.config, args.overrides)
    batches = [_batch(text) for text in args.batch] if args.batch else [None]
    options = _options(args)
    if args.out:
        _check_out(args.out)
    outcomes: list[compile.Outcome] = []

    def done(outcome):
        outcomes.append(outcome)
        print(_told(outcome), flush=True)
        if args.out:
            write(args.out, outcomes)
        return outcome

    for topology in args.topology:
        target = compile.find_target(topology)
        for what in args.what:
            attempt = {"train": _train, "sample": _sample}[what](args, target, options)
            for batch in batches:
                if batch == "auto":
                    found = [
                        outcome
                        for outcome in compile.largest_batch(lambda n: done(attempt(n)))
                        if outcome.fits
                    ]
                    print(
                        f"{what} on {topology}: "
                        + (
                            f"{max(o.batch_per_device for o in found)} pictures a device fit"
                            if found
                            else "not even 1 fits"
                        )
                    )
                else:
                    done(attempt(batch))


def _train(args, target, options):
    """attempt(pictures a device or None) → Outcome of the loop's own step, as the configuration
    shards it.
    """
    from caphuman_jax.aot import compile
    from caphuman_jax.runtime import sharding
    from caphuman_jax.runtime.device_specs import matrix_unit
    from caphuman_jax.training import compiled_step
    from caphuman_jax.training.loop import LoopConfig
    from caphuman_jax.training.run_config import from_config, read_config, recipe_module

    def attempt(batch):
        config = read_config(args.config, args.overrides, target.platform)
        count = len(target.devices)
        if batch is not None:
            config.training.batch_size = batch * count * config.training.get("accumulate", 1)
        if config.training.batch_size % count:
            raise SettingError(
                f"training.batch_size = {config.training.batch_size} cannot be divided over {count} devices; "  # noqa: E501
                f"say how many a device has with --batch N"
            )
        cfg = from_config(LoopConfig, config.loop, "loop")
        mesh = sharding.make_mesh(cfg.fsdp, target.devices)
        module = recipe_module(config)
        if not hasattr(module, "abstract_recipe"):
            raise SettingError(f"recipe {config.recipe!r} cannot be compiled without its data")
        recipe, rows = module.abstract_recipe(config, mesh, target.platform)
        settings = {
            name: config.training[name]
            for name in ("remat", "attention", "dtype", "accumulate")
            if name in config.training
        }
        padded = recipe.count_flops(matrix_unit(target.kind))
        return compile.compile_outcome(
            lambda: compiled_step.lower_step(recipe, mesh, cfg.sharding, recipe.frozen, rows),
            what="train",
            target=target,
            batch_per_device=recipe.batch_size // count,
            settings={
                "config": args.config,
                "sharding": cfg.sharding,
                "fsdp": cfg.fsdp,
                **settings,
                **_effort(args),
            },
            flops=recipe.flops and recipe.flops / count,
            padded=padded and padded / count,
            options=options,
        )

    return attempt


def _sample(args, target, options):
    """attempt(pictures a device) → Outcome of the whole way from conditions to pictures, every
    device its own share of them.
    """
    from caphuman_jax.aot import compile, sampler_program
    from caphuman_jax.config import ModelConfig
    from caphuman_jax.training.run_config import read_config
    from caphuman_jax.weights import model_folder

    config = read_config(args.config, args.overrides)
    model = (
        model_folder.read_config(model_folder.find_model(config.base))
        if config.get("base")
        else ModelConfig.from_dict(config.model.to_dict())
    )

    def attempt(batch):
        lower, flops, padded, settings = sampler_program.sampler(
            model, target, batch or 1, args.steps
        )
        return compile.compile_outcome(
            lower,
            what="sample",
            target=target,
            batch_per_device=batch or 1,
            settings={"config": args.config, **settings, **_effort(args)},
            flops=flops,
            padded=padded,
            options=options,
        )

    return attempt


def _batch(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"--batch {text}: a number of pictures per device, or auto")
    return int(text)


def _options(args) -> dict:
    """Compiler options of --effort and --option."""
    pairs = [text.partition("=") for text in args.option]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise SettingError(f"--option {wrong[0]}: write NAME=VALUE")
    if args.effort is not None and not -1 <= args.effort <= 1:
        raise SettingError(f"--effort {args.effort:g} does not lie between -1 and 1")
    efforts = {} if args.effort is None else {"exec_time_optimization_effort": args.effort}
    return efforts | {name: value for name, _, value in pairs}


def _effort(args) -> dict:
    return {} if args.effort is None else {"effort": args.effort}


def _told(outcome) -> str:
    """A few lines for people."""
    o, gib = outcome, lambda value: f"{value / 2**30:.2f} GiB"
    fits = {True: "fits", False: "DOES NOT FIT", None: "memory of the device not known"}[o.fits]
    room = f" of {gib(o.capacity)}" if o.capacity else ""
    lines = [
        f"{o.what} on {o.target} ({o.devices} × {o.device}), {o.batch_per_device} pictures a "
        f"device, "
        + ", ".join(f"{k} {v}" for k, v in o.settings.items())
        + f": {fits}, {gib(o.total)}{room}; compiled in {o.compile_seconds:.0f} s"
    ]
    if "arguments" in o.memory:
        lines.append(
            "  a device: "
            + ", ".join(
                f"{name} {gib(value)}" for name, value in o.memory.items() if name != "total"
            )
        )
    if o.flops and o.bytes_accessed:
        lines.append(
            f"  {o.flops / 1e12:.2f} TFLOP of the networks ({(o.compiled_flops or 0) / 1e12:.2f} "
            f"by the compiler's count), "
            f"{o.bytes_accessed / 1e9:.1f} GB moved, {o.intensity:.0f} FLOP a byte"
        )
    elif o.flops:
        lines.append(
            f"  {o.flops / 1e12:.2f} TFLOP of the networks; bytes moved are not known for this "
            f"device"
        )
    if o.seconds_estimate:
        lines.append(
            f"  at least {o.seconds_estimate * 1e3:.1f} ms ({o.bound}), so at most "
            f"{o.pictures_per_second:.0f} pictures a second on all devices"
        )
    return "\n".join(lines + ([f"  {o.note}"] if o.note else []))


_COLUMNS = (
    "what",
    "slice",
    "a device",
    "settings",
    "fits",
    "total",
    "arguments",
    "temporaries",
    "code",
    "TFLOP",
    "GB moved",
    "FLOP/B",
    "at least",
    "at most",
    "compiled in",
)


def write(path: Path, outcomes) -> None:
    """Results as JSON or as a table. Rows of the same program that a JSON file holds are replaced,
    others stay.
    """
    rows = _earlier(path)
    found = versions("jax", "jaxlib", "libtpu", "caphuman-jax")
    new = ({**dataclasses.asdict(outcome), "versions": found} for outcome in outcomes)
    rows |= {_key(row): row for row in new}
    text = (
        json.dumps(list(rows.values()), indent=1) + "\n"
        if path.suffix == ".json"
        else table(outcomes)
    )
    atomic.write_text(path, text)


def _check_out(path: Path) -> None:
    """Raises SettingError before anything is compiled, where the results cannot be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise SettingError(f"--out {path}: give the name of a file in a folder that exists")
    _earlier(path)


def _earlier(path: Path) -> dict[str, dict]:
    """The rows of a JSON file of results that is there, by their keys. Raises SettingError."""
    if path.suffix != ".json" or not path.exists():
        return {}
    try:
        return {_key(row): row for row in json_reader.read(path)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingError(
            f"--out {path} is there and holds no results of caphuman compile ({error}); choose "
            f"another name"
        ) from error


def table(outcomes) -> str:
    """A table in Markdown; memory, arithmetic and bytes are those of one device."""
    gib = lambda value: "" if value is None else f"{value / 2**30:.2f} GiB"
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for o in outcomes:
        told = ", ".join(
            str(v) if k in ("config", "sharding") else f"{k} {v}" for k, v in o.settings.items()
        )
        rows.append(
            (
                o.what,
                o.target,
                str(o.batch_per_device),
                told,
                {True: "yes", False: "no", None: "?"}[o.fits],
                gib(o.total),
                gib(o.memory.get("arguments")),
                gib(o.memory.get("temporaries")),
                gib(o.memory.get("code")),
                f"{o.flops / 1e12:.2f}" if o.flops else "",
                f"{o.bytes_accessed / 1e9:.1f}" if o.bytes_accessed else "",
                f"{o.intensity:.0f}" if o.intensity else "",
                f"{o.seconds_estimate * 1e3:.0f} ms ({o.bound})" if o.seconds_estimate else "",
                f"{o.pictures_per_second:.0f}/s" if o.pictures_per_second else "",
                f"{o.compile_seconds:.0f} s",
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _key(row: dict) -> str:
    return json.dumps(
        [row[name] for name in ("what", "target", "batch_per_device", "settings")], sort_keys=True
    )
